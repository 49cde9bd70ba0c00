"""Whisper's tokens: of a text, of the start of a transcript, and which of them make a word."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from mmdata.errors import SampleError

if TYPE_CHECKING:
    from whisper.model import Whisper as Network
    from whisper.tokenizer import Tokenizer

# Half of the decoder's 448 positions, as in decoding (openai-whisper `DecodingTask`: n_text_ctx // 2).
_MAX_TEXT_SHARE = 2


class Texts:
    """The tokenizers of one network: the same tokens for all languages, another start for each."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._by_language: dict[str, Tokenizer] = {}
        self.plain = self._make(None)
        self.languages = frozenset(self.plain.all_language_codes if network.is_multilingual else ("en",))

    def encode(self, text: str) -> list[int]:
        """Tokens of the text, with the space in front that Whisper's transcripts start with, and the end token.

        Blanks are single spaces, as in what Whisper was trained on: a right transcript lost 2 to 3 nats a token where
        it was broken into lines.

        Raises SampleError (`text_empty`, `text_too_long`).
        """
        line = " ".join(text.split())
        if not line:
            raise SampleError("text_empty", "the text is empty")
        # Ordinary: a text that spells a special token such as <|endoftext|> is only letters here.
        tokens = self.plain.encoding.encode_ordinary(f" {line}")
        limit = self._network.dims.n_text_ctx // _MAX_TEXT_SHARE
        if len(tokens) > limit:
            raise SampleError("text_too_long", f"the text has {len(tokens)} tokens, Whisper takes {limit}")
        return [*tokens, self.plain.eot]

    def prefix(self, language: str) -> list[int]:
        """Tokens that a transcript in this language starts with."""
        return list(self.tokenizer(language).sot_sequence_including_notimestamps)

    def words(self, language: str, tokens: list[int]) -> list[tuple[int, bool]]:
        """Count the tokens of each word, and say whether it is spoken: punctuation is a word of its own that is not.

        `tokens` are those of a text without the end token.
        """
        words, split = self.tokenizer(language).split_to_word_tokens(tokens)
        return [(len(own), any(map(str.isalnum, word))) for word, own in zip(words, split, strict=True)]

    def tokenizer(self, language: str) -> Tokenizer:
        """openai-whisper's tokenizer for transcripts in this language."""
        if language not in self._by_language:
            self._by_language[language] = self._make(language)
        return self._by_language[language]

    def _make(self, language: str | None) -> Tokenizer:
        from whisper.tokenizer import get_tokenizer

        net = self._network
        with warnings.catch_warnings():
            # openai-whisper leaves its vocabulary file to the garbage collector, the first time.
            warnings.simplefilter("ignore", ResourceWarning)
            return get_tokenizer(
                net.is_multilingual, num_languages=net.num_languages, language=language, task="transcribe"
            )
