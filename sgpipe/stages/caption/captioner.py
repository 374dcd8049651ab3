"""The `Captioner` interface (images in, captions out), what null settings stand for, and the served
captioner.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import ExifTags, Image

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImageFile
from sgpipe.images import open_header, read_bytes
from sgpipe.recipe import CaptionConfig, known_settings
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.chat import ChatRequest, Choice, Refusal
from sgpipe.stages.served.endpoint import ChatEndpoint
from sgpipe.stages.served.images import file_url, image_url

# of the published captioner, BLIP
PROMPT = "a picture of"
MAX_TOKENS = 20
CHAT_PROMPT = (
    "Write one short sentence about how the things in this image relate to each other: who does"
    " what to what, or what is on, in, under, above, behind, in front of or next to what. Use plain"
    " nouns, action verbs and spatial words. State only what is visible, and answer with the"
    " sentence alone."
)
_CHAT_MAX_TOKENS = 128
# Families whose prompt is not a request in words.
_PROMPTS = {
    "blip": PROMPT,
    "blip-2": "a photo of",
    "florence2": "<DETAILED_CAPTION>",
    "paligemma": "caption en",
}

_THOUGHTS = re.compile(r"^.*?</think>", re.DOTALL)
_LOCATION = re.compile(r"<loc_?\d+>")  # of Florence-2 and PaliGemma
_LINE_START = re.compile(r"^\s*(?:(?:#{1,6}|[-*+•>]|\d{1,3}[.)])\s+)+")
_NO_TEXT = re.compile(r"^\s*((```|~~~).*|([-*_]\s*){3,})$")  # code fences and rules
_MARKS = re.compile(r"\*\*|__|`|(?<!\w)[*_](?=\w)|(?<=[\w.,!?])[*_](?!\w)")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_UNPRINTABLE = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff\ufffd]")
_QUOTES = ('""', "''", "“”", "«»")
_ENDED = re.compile(r"""[.!?:;,…。！？]["')\]]*$""")
EXAMPLE = Image.new("RGB", (64, 64), "grey")
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty")


@dataclass(frozen=True)
class CaptionInput:
    """An RGB image to caption, or a region of one."""

    image: Image.Image
    key: int  # 63 bits, from which the seed of every sample derives
    # of a whole image; its pixels may have to be turned or converted to be those of it
    file: ImageFile | None = None


class Captioner:
    """Captions of images, which depend on the image's pixels, its key and the recipe only; see
    `Stage`.

    One of the user's own (`--captioner package.module:Class`) is made with the recipe's
    `CaptionConfig`, in each process that captions.

    Attributes:
        cache_folder: where the answers of a served model are kept; None: nowhere.
        role: what messages call the model; not "captioner" for one that is asked other questions.
    """

    cache_folder: CacheFolder | None = None
    role = "captioner"

    def __init__(self, config: CaptionConfig) -> None:
        self.config = config

    def check(self) -> None: ...

    def setup(self) -> None: ...

    def caption(self, inputs: Iterable[CaptionInput]) -> Iterator[list[str] | Refusal]:
        """Yield the captions of each input, in order: up to `caption.samples` single lines, or one
        by beam search.

        Only as many inputs are read as are captioned together. A refusal, of all samples, makes an
        error row.

        Raises:
            UserError, EngineError: if the captioner fails on every image.
        """
        raise NotImplementedError


def settings_of(config: CaptionConfig) -> CaptionConfig:
    """Return the settings with the captioner's own in place of null; one that cannot be read yet
    counts as BLIP.
    """
    if config.plugin is not None:
        return config
    family = "chat" if config.endpoint is not None else "blip"
    if config.endpoint is None and config.captioner is not None:
        family = str(known_settings(config.captioner).get("model_type", "blip"))
    max_tokens = MAX_TOKENS if family == "blip" else _CHAT_MAX_TOKENS
    defaults = {"prompt": _PROMPTS.get(family, CHAT_PROMPT), "max_tokens": max_tokens}
    return config.model_copy(
        update={name: value for name, value in defaults.items() if getattr(config, name) is None}
    )


def one_line(text: str) -> str:
    """Return what a language model wrote without line breaks, Markdown, reasoning, locations, and
    enclosing quotes.

    Lines become sentences: one that ends without punctuation gets a full stop before the next.
    """
    text = _LOCATION.sub("", _THOUGHTS.sub("", text))
    written = [line for line in text.splitlines() if not _NO_TEXT.match(line)]
    if "".join(written).lstrip().startswith("<think>"):  # cut off before it came to an answer
        return ""
    lines = [line for line in map(_plain, written) if line]
    ended = [line if _ENDED.search(line) else f"{line}." for line in lines[:-1]]
    return _unquoted(" ".join([*ended, *lines[-1:]]))


def _plain(line: str) -> str:
    """Return a line without Markdown and with single spaces."""
    text = _MARKS.sub("", _LINK.sub(r"\1", _LINE_START.sub("", line)))
    return " ".join(_UNPRINTABLE.sub(" ", text).split())


def _unquoted(text: str) -> str:
    """Return a text without quotes around all of it."""
    inside = text[1:-1]
    is_quoted = len(text) > 1 and text[0] + text[-1] in _QUOTES and text[0] not in inside
    return inside.strip() if is_quoted else text


class ChatCaptioner(Captioner):
    """A captioner that also answers other questions about images, as `ChatEndpoint.ask_all`
    does.
    """

    config: CaptionConfig

    def ask_all(self, requests: Iterable[ChatRequest]) -> Iterator[list[Choice] | Refusal]:
        """See `ChatEndpoint.ask_all`."""
        raise NotImplementedError

    def caption(self, inputs: Iterable[CaptionInput]) -> Iterator[list[str] | Refusal]:
        for answer in self.ask_all(map(self.request, inputs)):
            if isinstance(answer, Refusal):
                yield answer
            else:
                lines = [one_line(choice.text) for choice in answer]
                yield list(filter(None, lines)) or Refusal("the answer has no caption in it")

    def ask_groups(
        self, groups: Iterable[Sequence[ChatRequest]]
    ) -> Iterator[list[list[Choice] | Refusal]]:
        """Yield the answers to each group of requests that begin with the same image and text."""
        raise NotImplementedError

    def request(self, source: CaptionInput) -> ChatRequest:
        config = self.config
        sampling = {name: getattr(config, name) for name in _SAMPLING}
        asked = config.prompt or "", self.shown(source), config.system
        return ChatRequest(*asked, **sampling, seed=source.key, n=config.samples)

    def shown(self, source: CaptionInput) -> Image.Image | str:
        return source.image


class ServedCaptioner(ChatCaptioner):
    """A `Captioner` that sends every image to an endpoint, several at once.

    Whether the same seed gives the same caption is up to the server; answers are kept, and so never
    change in a run.
    """

    def __init__(self, config: CaptionConfig) -> None:
        """Raises UserError for beam search, which the API does not have."""
        super().__init__(config)
        if config.decoding == "beam":
            raise UserError(
                "caption.decoding: an endpoint samples; set it to nucleus, and caption.temperature"
                " lower"
            )

    def setup(self) -> None:
        _ = self._endpoint  # there is one for all threads that will ask

    @cached_property
    def _endpoint(self) -> ChatEndpoint:
        """Return the endpoint that is asked.

        Raises:
            UserError: like `ChatEndpoint`.
        """
        config = self.config
        return ChatEndpoint(
            config.endpoint or (), str(config.captioner), config.requests, self.cache_folder
        )

    def ask_all(self, requests: Iterable[ChatRequest]) -> Iterator[list[Choice] | Refusal]:
        return self._endpoint.ask_all(requests)

    def ask_groups(
        self, groups: Iterable[Sequence[ChatRequest]]
    ) -> Iterator[list[list[Choice] | Refusal]]:
        return self._endpoint.ask_groups(groups)

    def check(self, example: ChatRequest | None = None) -> None:
        """Ask for an example, or else for a caption of a grey image.

        Raises:
            UserError: like `ChatEndpoint.check`.
        """
        self._endpoint.check(example or self.request(CaptionInput(EXAMPLE, key=0)))

    def shown(self, source: CaptionInput) -> str:
        """Return the image file as it is, if it shows what is captioned, else the pixels."""
        side = self.config.image_size
        is_small = side is None or max(source.image.size) <= side
        if source.file is not None and is_small:
            with open_header(source.file, "the image to caption") as image:
                if image.size == source.image.size and _is_plain(image):
                    return file_url(read_bytes(source.file), f"image/{str(image.format).lower()}")
        return image_url(source.image, side)


def _is_plain(image: Image.Image) -> bool:
    """Return whether every server shows an image file as sgpipe opens it."""
    if image.format not in ("JPEG", "PNG") or image.mode not in ("RGB", "L"):
        return False
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return not is_turned and "transparency" not in image.info
