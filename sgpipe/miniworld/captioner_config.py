"""The recipe of the miniworld's captioner."""

from __future__ import annotations

from pydantic import Field, model_validator

from sgpipe.recipe import Config


class ModelConfig(Config):
    """The sizes of the BLIP model. Pictures are squashed to squares of `image_size` pixels."""

    image_size: int = Field(112, ge=16)
    patch_size: int = Field(14, ge=4)
    vision_width: int = Field(128, ge=16, multiple_of=4)
    vision_layers: int = Field(4, ge=1)
    text_width: int = Field(128, ge=16)
    text_layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _divisible(self) -> ModelConfig:
        if self.image_size % self.patch_size:
            raise ValueError("image_size must be a multiple of patch_size")
        if self.vision_width % self.heads or self.text_width % self.heads:
            raise ValueError("vision_width and text_width must be multiples of heads")
        return self

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size


class CaptionerConfig(Config):
    """What the captioner is, and how it is trained: `dense_share` of the steps without captions come first."""

    model: ModelConfig = ModelConfig()
    seed: int = Field(0, ge=0)
    pictures: int = Field(40_000, ge=1, description="of the train split; the first ones, each also seen mirrored")
    steps: int = Field(12_000, ge=1)
    batch_size: int = Field(16, ge=1)
    dense_share: float = Field(0.3, ge=0, lt=1)
    dense_weight: float = Field(0.2, ge=0, description="of the dense loss beside the captions' loss")
    learning_rate: float = Field(2e-3, gt=0, description="of embeddings, norms, biases and heads (AdamW)")
    matrix_learning_rate: float = Field(0.01, gt=0, description="of the layers' matrices (Muon)")
    weight_decay: float = Field(0.02, ge=0, description="of the layers' matrices")
    warmup: int = Field(100, ge=0, description="steps")
