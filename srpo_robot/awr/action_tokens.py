"""FAST action tokens (Pertsch et al. 2025, arXiv 2501.09747) fitted on a dataset: DCT, rounding, byte-pair encoding.

lerobot's tokenizer was fitted on many robots and has to be downloaded. A tiny policy has its own, stored in its
checkpoint. A copy of this file is stored beside it, so that lerobot can load it too. That is why this file imports
nothing from this package.
"""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, models, trainers
from transformers import PreTrainedTokenizerFast, ProcessorMixin

_FIRST = 0x100  # character of the smallest coefficient; above all white space and control characters


class ActionTokens(ProcessorMixin):
    """Turns a chunk of normalised actions (H, A) into token ids and back. Rounding is the only error.

    Coefficients are ordered from the lowest frequency up, with all dimensions of one frequency side by side. Attributes
    and call have the names that lerobot's pi0_fast uses.

    Attributes:
        bpe_tokenizer: tokens <-> a string with one character per coefficient.
        scale: factor of the coefficients before rounding.
        min_token: coefficient of the character 0.
        coefficients: number of values that a coefficient takes.
        steps: H, number of actions in a chunk.
    """

    def __init__(
        self,
        bpe_tokenizer: PreTrainedTokenizerFast,
        scale: float = 10.0,
        min_token: int = 0,
        coefficients: int = 1,
        steps: int = 1,
    ) -> None:
        super().__init__(bpe_tokenizer)
        self.bpe_tokenizer = bpe_tokenizer
        self.scale, self.min_token, self.coefficients, self.steps = scale, min_token, coefficients, steps

    @classmethod
    def fit(cls, chunks: np.ndarray, scale: float, vocab: int) -> ActionTokens:
        """Fits a tokenizer of at most `vocab` tokens on chunks (n, H, A). The same chunks give the same tokenizer.

        Raises:
            ValueError: the coefficients take more than `vocab` values.
        """
        numbers = _coefficients(chunks, scale)
        low, high = int(numbers.min()), int(numbers.max())
        if high - low >= vocab:
            raise ValueError(f"its coefficients take {high - low + 1} values and there is room for {vocab} tokens")
        alphabet = [chr(_FIRST + number) for number in range(high - low + 1)]
        bpe = Tokenizer(models.BPE())
        bpe.decoder = decoders.Fuse()
        trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)  # type: ignore
        bpe.train_from_iterator(_strings(numbers, low - _FIRST), trainer)
        wrapped = PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False)
        return cls(wrapped, scale, low - _FIRST, len(alphabet), chunks.shape[1])

    def __call__(self, chunks: Any) -> list[list[int]]:  # type: ignore[override]
        """Returns token ids of chunks (n, H, A) or of one chunk (H, A). Clips coefficients to the fitted range."""
        chunks = np.asarray(chunks, dtype=np.float64)
        numbers = _coefficients(chunks if chunks.ndim == 3 else chunks[None], self.scale)
        low = self.min_token + _FIRST
        numbers = numbers.clip(low, low + self.coefficients - 1)
        encoded: Any = self.bpe_tokenizer(_strings(numbers, self.min_token))
        return encoded["input_ids"]

    def decode(self, tokens: list[int], width: int) -> np.ndarray:  # type: ignore[override]
        """Returns the chunk (H, A) of token ids, A = `width`. Raises ValueError if they do not make a whole chunk."""
        numbers = np.array([ord(c) for c in self.bpe_tokenizer.decode(tokens)], dtype=np.float64) + self.min_token
        if len(numbers) != self.steps * width:
            raise ValueError(f"{len(numbers)} coefficients where {self.steps * width} are a chunk")
        return np.asarray(idct(numbers.reshape(self.steps, width) / self.scale, axis=0, norm="ortho"))

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> list[str]:
        """Writes the tokenizer, and a copy of this file as the code with which `AutoProcessor` loads it."""
        written = super().save_pretrained(str(save_directory), push_to_hub, **options)
        folder, source = Path(save_directory), Path(inspect.getfile(type(self)))
        description = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        description |= {"auto_map": {"AutoProcessor": f"{source.stem}.{type(self).__name__}"}}
        (folder / "processor_config.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
        shutil.copyfile(source, folder / source.name)
        return written


def _coefficients(chunks: np.ndarray, scale: float) -> np.ndarray:
    """Returns rounded DCT coefficients (n, H * A) of chunks (n, H, A)."""
    spectrum = np.asarray(dct(np.asarray(chunks, dtype=np.float64), axis=1, norm="ortho"))
    return np.rint(spectrum * scale).astype(np.int64).reshape(len(chunks), -1)


def _strings(numbers: np.ndarray, zero: int) -> list[str]:
    return ["".join(map(chr, row)) for row in (numbers - zero).tolist()]
