"""A byte-level BPE tokenizer, learned from the training text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sae_tools.config import DataConfig, LMTokenizerConfig
from sae_tools.data.documents import DocumentSource
from sae_tools.data.sources import open_documents
from sae_tools.errors import UserError

END_OF_TEXT = "<|endoftext|>"
"""The one special token: it begins contexts and documents, ends them, and pads."""
_LONGEST_TOKEN = 24  # characters; else rulers of ---- and #### and deep indentation fill a small vocabulary


def train_tokenizer(source: DocumentSource, vocabulary: int, characters: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with `vocabulary` tokens, learned from the first `characters` of the source's documents.

    Pre-tokenised with GPT-2's regular expression (Radford et al. 2019), in which a newline and the indentation after
    it may merge. Raises UserError where the text does not give that many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # pyright: ignore[reportCallIssue]
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(source, characters), trainer)
    found = tokenizer.get_vocab_size()
    if found < vocabulary:
        raise UserError(
            f"tokenizer.vocabulary: expected a text that gives {vocabulary} tokens, but the training part of "
            f"{source.fingerprint().get('source', 'data.source')} gives only {found}."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def _texts(source: DocumentSource, characters: int) -> Iterator[str]:
    while characters > 0 and (document := source.read()) is not None:
        if document.text is None:
            raise UserError("tokenizer.path: the data is already tokenised, so its tokenizer must be given.")
        yield document.text[:characters]
        characters -= len(document.text)


def get_tokenizer(cfg: LMTokenizerConfig, data: DataConfig, seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer that `cfg` names, or one learned from the training part of `data`."""
    if cfg.path is None:
        return train_tokenizer(open_documents(data, split="train", seed=seed), cfg.vocabulary, cfg.training_characters)
    path = Path(cfg.path).expanduser()
    try:
        if path.is_file():
            special = Tokenizer.from_file(str(path)).get_added_tokens_decoder()
            first = str(special[min(special)]) if special else None
            return PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token=first, eos_token=first, pad_token=first)
        if path.is_dir():
            return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"tokenizer.path: {path} holds no tokenizer that can be read ({error}).") from error
    raise UserError(f"tokenizer.path: {path} does not exist.")
