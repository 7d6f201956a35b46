"""A remote images/edits endpoint, through the official client: where DALL-E 2 stood in the paper."""

import base64
from typing import Any

import numpy as np

from bld.errors import BldError, MissingExtra
from bld.images import Photograph, open_photograph
from bld.masks import FloatArray
from bld.options import EditOptions
from bld.png import encode_png


class RemoteEdits:
    """Edits by POST /v1/images/edits: `bld serve`, or anybody else who speaks it."""

    def __init__(self, url: str, *, model: str | None = None, api_key: str | None = None) -> None:
        """url: up to and with /v1. api_key: OPENAI_API_KEY if left out. Raises MissingExtra."""
        try:
            import openai
        except ImportError as error:
            raise MissingExtra("a remote endpoint needs the client: pip install openai") from error
        self._openai, self.model = openai, model
        self.client = openai.OpenAI(base_url=url, api_key=api_key)

    def edit(self, photograph: Photograph, mask: FloatArray, prompt: str, *, n: int) -> list[Photograph]:
        """Up to 10 edits in the order that they come in. mask: h w, 1 = edit.

        Raises BldError with what the endpoint says, if it refuses.
        """
        alpha = np.where(mask > 0, 0, np.iinfo(photograph.pixels.dtype).max).astype(photograph.pixels.dtype)
        asked: dict[str, Any] = {"model": self.model} if self.model else {}
        try:
            answer = self.client.images.edit(
                image=("image.png", encode_png(photograph.pixels)),
                mask=("mask.png", encode_png(photograph.pixels, alpha=alpha)),
                prompt=prompt,
                n=n,
                response_format="b64_json",
                **asked,
            )
        except self._openai.OpenAIError as error:
            raise BldError(f"{self.client.base_url}: {error}") from error
        return [
            open_photograph(base64.b64decode(image.b64_json or ""), max_pixels=EditOptions().max_pixels)
            for image in answer.data or ()
        ]

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
