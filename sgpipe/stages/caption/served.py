"""Captions by a model behind a server with the OpenAI chat API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from PIL import Image

from sgpipe.errors import UserError
from sgpipe.images import open_header, read_bytes
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption.captioner import CaptionInput, Refused, one_line
from sgpipe.stages.endpoint.cache import CacheFolder
from sgpipe.stages.endpoint.client import ChatEndpoint
from sgpipe.stages.endpoint.messages import (
    ChatRequest,
    ChatSampling,
    Refusal,
    conversation,
    file_url,
    image_url,
    is_plain,
)

_EXAMPLE = Image.new("RGB", (64, 64), (127, 127, 127))


class ServedCaptioner:
    """A `Captioner` that sends every image to an endpoint, several at once.

    The seed of a sample derives from the image's key. Whether the same seed gives the same caption is up to the server;
    answers are cached, and so never change within a run.
    """

    def __init__(self, config: CaptionConfig, cache_folder: CacheFolder | None = None) -> None:
        """
        Args:
            config: without null settings.
            cache_folder: where answers are kept, or None.

        Raises UserError like `ChatEndpoint`, and for beam search, which the API does not have.
        """
        if config.decoding == "beam":
            raise UserError("caption.decoding: an endpoint samples; set it to nucleus, and caption.temperature lower")
        assert config.endpoint is not None
        assert config.captioner is not None
        self.config = config
        self._endpoint = ChatEndpoint(config.endpoint, config.captioner, config.requests, cache_folder)

    def check(self) -> None:
        """Ask for a caption of a grey image. Raises UserError like `ChatEndpoint.check`."""
        self._endpoint.check(self._request(CaptionInput(_EXAMPLE, key=0)))

    def setup(self) -> None:
        """Load nothing."""

    def caption(self, inputs: Iterable[CaptionInput]) -> Iterator[list[str] | Refused]:
        """See `Captioner`; drops refused and empty samples. Raises EngineError if the endpoint does not answer."""
        for answer in self._endpoint.ask_all(map(self._request, inputs)):
            if isinstance(answer, Refusal):
                yield Refused(answer.reason)
            else:
                captions = [one_line(text) for text in answer.texts]
                yield [caption for caption in captions if caption] or Refused("the answer has no caption in it")

    def _request(self, source: CaptionInput) -> ChatRequest:
        config = self.config
        assert config.max_tokens is not None
        return ChatRequest(
            conversation(config.prompt or "", self._url(source), config.system),
            ChatSampling(config.max_tokens, config.temperature, config.top_p, config.top_k, config.repetition_penalty),
            seed=source.key,
            n=config.samples,
        )

    def _url(self, source: CaptionInput) -> str:
        """Return the image file as it is, if it shows what is captioned, else the pixels."""
        side = self.config.image_size
        if source.file is not None and (side is None or max(source.image.size) <= side):
            with open_header(source.file, "the image to caption") as image:
                if is_plain(image) and image.size == source.image.size:
                    return file_url(read_bytes(source.file), f"image/{str(image.format).lower()}")
        return image_url(source.image, side)
