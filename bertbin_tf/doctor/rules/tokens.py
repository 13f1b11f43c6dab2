"""What can be wrong with tokens and their mask."""

import collections

import numpy as np
import scipy.stats

from bertbin_tf.doctor.evidence import Evidence
from bertbin_tf.doctor.rules.registry import Proof, rule

# Rank correlation of how often a word occurs and its id. MiniLM's vocabulary: -0.40 on film reviews, -0.48 on tweets;
# 0.06 with its words in the order of the alphabet.
UNORDERED, MIN_DISTINCT = -0.1, 1000
MIN_TEXTS = 64
PRESET_OF_THE_ENCODER = "preprocessor = load_preprocessor(preset)  # the preset that the encoder was loaded from"
# By the size of its vocabulary, what begins the texts of an encoder of keras-hub's presets: BERT,
# DistilBERT and ELECTRA uncased, cased, multilingual and Chinese; RoBERTa and XLM-RoBERTa; DeBERTaV3. ALBERT's 30,000
# is too round a number to know it by.
STARTS: dict[int | None, int] = {
    30522: 101,
    28996: 101,
    119547: 101,
    21128: 101,
    50265: 0,
    250002: 0,
    128100: 1,
}
# 1,600 film reviews cut at 32 tokens: 35,743 words are of 6,261 kinds, and 47,299 letters of 49.
MANY_WORDS, FEW_KINDS = 5000, 100
# Tokens that a text needs, and the share of phrases that most texts have: 0 in film reviews and tweets.
SHORT, MUCH_SHARED = 32, 0.3
MOST_CUT = 0.75  # of the texts: where half of them are cut, most are so by little


@rule
def input_order_wrong(evidence: Evidence) -> Proof | None:
    """Token ids, padding mask and segments have changed places: a mask is looked up, or read for another."""
    tokens = evidence.train.tokens
    if tokens is None or tokens.ids.shape[1] < 3:
        return None
    if tokens.ids.max() > 1:
        return _segments_for_mask(evidence)
    others = {"padding mask": tokens.mask, "segments": tokens.segments}
    wrong = {name: int(array.max()) for name, array in others.items() if array is not None and array.max() > 1}
    if not wrong:
        return None
    name, highest = next(iter(wrong.items()))
    return Proof(
        f"the token ids are 0 and 1 only, and the {name} goes up to {highest}",
        "x = {'token_ids': token_ids, 'padding_mask': padding_mask, 'segment_ids': segment_ids}  # by name",
    )


@rule
def texts_empty_or_constant(evidence: Evidence) -> Proof | None:
    """Most rows are the same text, or none, so there is nothing to learn from."""
    tokens = evidence.train.tokens
    if tokens is None or len(tokens.ids) < 16 or input_order_wrong(evidence):
        return None
    num_empty = int((tokens.lengths <= 2).sum())
    (_, num_same), *_ = collections.Counter(tokens.keys).most_common(1)
    num_rows = len(tokens.ids)
    if max(num_empty, num_same) <= 0.5 * num_rows:
        return None
    return Proof(
        f"of {num_rows:,} rows {num_empty:,} have no token but start and end, and {num_same:,} are one and the same",
        "for x, y in dataset.take(1): print(tokenizer.detokenize(x['token_ids'][:5]))  # is this the right column?",
    )


@rule
def padding_mask_wrong(evidence: Evidence) -> Proof | None:
    """The padding mask does not say which tokens are padding: the model reads padding, or does not read the text."""
    tokens = evidence.train.tokens
    if tokens is None or input_order_wrong(evidence):
        return None
    if tokens.mask is None:
        return _fault_of_own_mask(evidence)
    compute = f"x['padding_mask'] = x['token_ids'] != {tokens.padding}"
    if set(np.unique(tokens.mask)) - {0, 1}:
        if not evidence.answers.read_padding > 0.1:
            return None
        return Proof(
            f"the mask goes from {tokens.mask.min():g} to {tokens.mask.max():g}, where 1 is a token and 0 is padding; "
            f"other ids in the place of padding move what the head sees by {evidence.answers.read_padding:.0%} of its "
            "spread over texts",
            compute,
        )
    if fault := _fault_of(tokens.mask, tokens.is_padding):
        return Proof(f"{fault} (id {tokens.padding} at the end of a row)", compute)
    return _fault_of_own_mask(evidence)


@rule
def tokenizer_mismatch(evidence: Evidence) -> Proof | None:
    """The tokens are not those of the encoder's vocabulary: most words are unknown to it, or are other words."""
    tokens = evidence.train.tokens
    if tokens is None or not tokens.lengths.sum():
        return None
    if evidence.patient.has_real_size and len(tokens.ids) >= MIN_TEXTS:
        (start, first), (_, last) = map(_most_common, (tokens.first, tokens.last))
        if max(first, last) < 0.5:
            return Proof(
                f"no token begins more than {first:.0%} of the texts and none ends more than {last:.0%}: the encoder "
                "was trained on texts between a start and an end token",
                PRESET_OF_THE_ENCODER,
            )
        size = evidence.patient.vocabulary_size
        if first > 0.9 and start != STARTS.get(size, start):
            return Proof(
                f"{first:.0%} of the texts begin with the token {start}, and those that encoders with a vocabulary of "
                f"{size:,} were trained on begin with {STARTS[size]}",
                PRESET_OF_THE_ENCODER,
            )
    inner = tokens.ids[~tokens.is_padding]
    ends = {*tokens.first, *tokens.last}
    is_special = np.isin(inner, list(ends)) if len(ends) <= 2 else np.zeros(len(inner), bool)
    words = inner[~is_special]
    if len(words) < 200:
        return None
    values, counts = np.unique(words, return_counts=True)
    is_repeated = tokens.shared_share > MUCH_SHARED  # the same phrase in most texts has few kinds of words, too
    if len(words) >= MANY_WORDS and len(values) < FEW_KINDS and evidence.patient.has_real_size and not is_repeated:
        return Proof(
            f"{len(words):,} tokens are of {len(values)} kinds only, where so many words have thousands: are they "
            "letters, as of ' '.join(text)?",
            "for x, y in dataset.take(1): print(tokenizer.detokenize(x['token_ids'][:5]))  # are these your texts?",
        )
    share, token = counts.max() / len(words), int(values[np.argmax(counts)])
    vocabulary_size = evidence.patient.vocabulary_size
    if vocabulary_size is not None and values[-1] >= vocabulary_size:
        return Proof(
            f"token id {values[-1]} is outside of the encoder's vocabulary of {vocabulary_size:,}",
            PRESET_OF_THE_ENCODER,
        )
    if len(values) >= MIN_DISTINCT and evidence.patient.has_real_size:
        order = float(scipy.stats.spearmanr(counts, values).statistic)
        if order > UNORDERED:
            return Proof(
                f"frequent words do not have low ids (rank correlation {order:.2f} over {len(values):,} words), as in "
                "vocabularies of WordPiece and byte pairs, which are built from the most frequent down",
                PRESET_OF_THE_ENCODER,
            )
    if share < 0.25 or len(values) < 3:
        return None
    return Proof(
        f"{share:.0%} of the words are the token {token}, as the unknown word is where text and vocabulary do not fit",
        "preprocessor = load_preprocessor(preset)  # of the encoder's preset: it lowercases where the vocabulary does",
    )


@rule
def texts_truncated(evidence: Evidence) -> Proof | None:
    """Texts are cut so short that what decides the label is cut away."""
    tokens = evidence.train.tokens
    if tokens is None or len(tokens.ids) < 16 or tokenizer_mismatch(evidence):
        return None
    length = tokens.ids.shape[1]
    is_fixed = len({batch.shape[1] for batch in evidence.train.token_batches}) == 1
    share = float((tokens.lengths == length).mean())
    if not is_fixed or share < MOST_CUT:
        return None
    if tokens.shared_share > MUCH_SHARED and (1 - tokens.shared_share) * length <= SHORT:
        return Proof(
            f"{share:.0%} of the texts fill all {length} tokens, so they were cut there, and {tokens.shared_share:.0%} "
            "of what is left are phrases that most texts have, such as a header",
            f"preprocessor = load_preprocessor(preset, sequence_length={max(64, 4 * length)})  # or cut the header",
        )
    if length > SHORT or len(set(tokens.lengths)) == 1 and length > 16:
        return None
    return Proof(
        f"{share:.0%} of the texts fill all {length} tokens, so they were cut there",
        f"preprocessor = load_preprocessor(preset, sequence_length={max(64, 4 * length)})",
    )


def _segments_for_mask(evidence):
    """Returns the proof that the encoder gets the segments for a mask, or nothing."""
    heeded, tokens = evidence.answers.heeded_mask, evidence.train.tokens
    if heeded is None or heeded.ndim != 2 or tokens.mask is None or tokens.segments is None:
        return None
    mask, segments = (array[: len(heeded), : heeded.shape[1]] for array in (tokens.mask, tokens.segments))
    if np.array_equal(heeded, mask) or not np.array_equal(heeded, segments):
        return None
    return Proof(
        "the padding mask that reaches the encoder is what the data have as segments, and not their mask",
        "x = {'token_ids': token_ids, 'padding_mask': padding_mask, 'segment_ids': segment_ids}  # by name",
    )


def _fault_of(mask, is_padding, share=0.05):
    """Returns what is wrong with a mask of 0 and 1 in more than a share of the rows, or nothing."""
    num_hidden = int((~mask.astype(bool) & ~is_padding).any(axis=1).sum())
    num_read = int((mask.astype(bool) & is_padding).any(axis=1).sum())
    # A last token that is equal to the padding id is no fault.
    if max(num_hidden, num_read) <= share * len(mask):
        return None
    return f"of {len(mask):,} rows {num_hidden:,} hide tokens behind the mask, and {num_read:,} let padding through"


def _fault_of_own_mask(evidence):
    """Returns what is wrong with the mask that the model makes of its inputs, or nothing."""
    mask, width = evidence.answers.heeded_mask, evidence.train.token_batches[0].shape[1]
    if mask is None or mask.shape[1:] != (width,):
        return None
    fault = _fault_of(mask, evidence.train.tokens.is_padding[: len(mask), :width], share=0.25)  # of a few rows
    if not fault:
        return None
    return Proof(
        f"of the mask that reaches the encoder, which the model makes itself: {fault}",
        f"mask = keras.ops.cast(keras.ops.not_equal(ids, {evidence.train.tokens.padding}), 'int32')  # 1 is a token",
    )


def _most_common(ids):
    """Returns the most frequent value, and its share."""
    values, counts = np.unique(ids, return_counts=True)
    return int(values[counts.argmax()]), counts.max() / len(ids)
