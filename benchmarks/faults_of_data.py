"""Faults of rows, labels and tokens, each as a user would have written it; its name is the name of the case."""

import keras
import keras_nlp
import numpy as np
import tensorflow as tf
from faults_healthy import third_of_the_rows_three_times
from faults_setup import NUM_VALIDATION, make_rare, some_rows

from bertbin_tf.models import load_preprocessor


def generator_made_once(setup):
    third_of_the_rows_three_times(setup)

    def batches(tokens, labels):
        made = setup.plain_batches(tokens, labels)
        rows = iter(list(made))
        return tf.data.Dataset.from_generator(lambda: rows, output_signature=made.element_spec)

    setup.batches = batches


def filter_that_keeps_nothing(setup):
    setup.batches = lambda tokens, labels: setup.plain_batches(tokens, labels).filter(lambda x, y: tf.shape(y)[0] < 2)


def labels_1_and_2(setup):
    setup.labels = lambda labels: labels + 1


def labels_minus_1_and_1(setup):
    setup.labels = lambda labels: 2 * labels - 1


def labels_0_and_255(setup):
    setup.labels = lambda labels: 255 * labels


def labels_with_missing_ones(setup):
    setup.labels = lambda labels: np.where(np.arange(len(labels)) % 50 == 7, np.nan, labels)


def only_the_positives(setup):
    setup.rows = lambda texts, labels: ([t for t, y in zip(texts, labels, strict=True) if y], labels[labels == 1])


def slice_of_sorted_rows(setup):
    def rows(texts, labels):
        order = np.argsort(labels, kind="stable")[: (labels == 0).sum()]
        return [texts[i] for i in order], labels[order]

    setup.rows = rows


def weights_by_integer_division(setup):
    def batches(tokens, labels):
        weights = [float(len(labels) // (2 * int((labels == label).sum()))) for label in labels]
        return tf.data.Dataset.from_tensor_slices((tokens, labels, weights)).batch(setup.batch_size)

    setup.batches = batches


def sorted_by_label(setup):
    setup.order = lambda labels: np.argsort(labels, kind="stable")


def positives_then_negatives(setup):
    setup.order = lambda labels: np.argsort(-labels, kind="stable")


def shuffle_buffer_too_small(setup):
    setup.order = lambda labels: np.argsort(labels, kind="stable")

    def batches(tokens, labels):
        rows = tf.data.Dataset.from_tensor_slices((tokens, labels))
        return rows.shuffle(100, seed=0).batch(setup.batch_size)

    setup.batches = batches


def empty_texts(setup):
    setup.rows = lambda texts, labels: ([""] * len(texts), labels)


def one_text_for_all(setup):
    setup.rows = lambda texts, labels: ([texts[0]] * len(texts), labels)


def missing_texts_filled(setup):
    def rows(texts, labels):
        is_missing = np.random.default_rng(3).random(len(texts)) < 0.9
        return ["nan" if missing else text for missing, text in zip(is_missing, texts, strict=True)], labels

    setup.rows = rows


def tokens_and_mask_swapped(setup):
    setup.tokens = lambda tokens: tokens | {"token_ids": tokens["padding_mask"], "padding_mask": tokens["token_ids"]}


def tokens_and_segments_swapped(setup):
    setup.tokens = lambda tokens: tokens | {"token_ids": tokens["segment_ids"], "segment_ids": tokens["token_ids"]}


def mask_inverted(setup):
    setup.tokens = lambda tokens: tokens | {"padding_mask": 1 - tokens["padding_mask"]}


def mask_inverted_in_the_model(setup):
    def features(backbone):
        inputs = backbone.input | {"padding_mask": 1 - backbone.input["padding_mask"]}
        return backbone(inputs)["pooled_output"]

    setup.features = features


def mask_to_be_added(setup):
    setup.tokens = lambda tokens: tokens | {"padding_mask": (1 - tokens["padding_mask"]) * -10000}


def mask_of_ones(setup):
    setup.tokens = lambda tokens: tokens | {"padding_mask": np.ones_like(tokens["padding_mask"])}
    setup.sequence_length = 96


def words_by_text_vectorization(setup):
    vectorize = keras.layers.TextVectorization(max_tokens=30_000, output_sequence_length=setup.sequence_length)

    def rows(texts, labels):
        vectorize.adapt(texts)
        return texts, labels

    def encode(texts):
        ids = np.asarray(vectorize(list(texts)), "int32")
        return {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": (ids > 0).astype("int32")}

    setup.rows, setup.encode = rows, encode


def capitals_unknown_to_the_vocabulary(setup):
    vocabulary = load_preprocessor("minilm").tokenizer.vocabulary
    setup.tokenizer = lambda: keras_nlp.models.BertTokenizer(vocabulary, lowercase=False)
    setup.texts = lambda texts: [text.title() for text in texts]


def vocabulary_of_few_words(setup):
    # Special tokens, characters and a hundred words.
    vocabulary = list(load_preprocessor("minilm").tokenizer.vocabulary)[:1100]
    setup.tokenizer = lambda: keras_nlp.models.BertTokenizer(vocabulary, lowercase=True)


def vocabulary_of_another_model(setup):
    special = load_preprocessor("minilm").tokenizer
    vocabulary = list(special.vocabulary)
    words = sorted(vocabulary[999:])  # the same words, in another order
    setup.tokenizer = lambda: keras_nlp.models.BertTokenizer(vocabulary[:999] + words, lowercase=True)


def cut_at_6_tokens(setup):
    setup.sequence_length = 6


def cut_at_8_tokens(setup):
    setup.sequence_length = 8


def rare_positives_2_percent(setup):
    make_rare(setup, 0.02)


def rare_positives_5_percent(setup):
    make_rare(setup, 0.05)


def rare_negatives_3_percent(setup):
    make_rare(setup, 0.97)


def permuted_labels(setup):
    setup.rows = lambda texts, labels: (texts, np.random.default_rng(2).permutation(labels))


def labels_slipped_by_one(setup):
    setup.rows = lambda texts, labels: (texts, np.roll(labels, 1))


def labels_slipped_by_two_in_runs(setup):
    """In the file's order, where neighbours often have one label, as sentences of one review have."""

    def rows(texts, labels):
        order = np.concatenate(
            [eight[np.argsort(labels[eight])] for eight in np.split(np.arange(len(labels)), len(labels) // 8)]
        )
        return [texts[i] for i in order], np.roll(labels[order], 2)

    setup.rows, setup.order = rows, lambda labels: np.arange(len(labels))


def random_labels(setup):
    setup.rows = lambda texts, labels: (texts, np.random.default_rng(4).integers(0, 2, len(labels)))


def validation_from_training_rows(setup):
    setup.validation_rows = lambda texts, labels: (texts[:NUM_VALIDATION], labels[:NUM_VALIDATION])


def half_of_validation_from_training_rows(setup):
    def validation(texts, labels):
        others, other_labels = some_rows(setup.dataset, "validation", NUM_VALIDATION)
        half = NUM_VALIDATION // 2
        return texts[:half] + others[half:], np.concatenate([labels[:half], other_labels[half:]])

    setup.validation_rows = validation


def validation_of_positives(setup):
    def validation(texts, labels):
        texts, labels = some_rows(setup.dataset, "validation", 2 * NUM_VALIDATION)
        chosen = np.flatnonzero(labels == 1)[:NUM_VALIDATION]
        return [texts[i] for i in chosen], labels[chosen]

    setup.validation_rows = validation


def validation_in_another_language(setup):
    def validation(texts, labels):
        texts, labels = some_rows(setup.dataset, "validation", NUM_VALIDATION)
        return [text[::-1] for text in texts], labels

    setup.validation_rows = validation


def ids_counted_from_one(setup):
    """A vocabulary numbered by `enumerate(words, start=1)`, for 0 is padding."""
    setup.tokens = lambda tokens: tokens | {"token_ids": tokens["token_ids"] + (tokens["padding_mask"] > 0)}


def cut_behind_a_header(setup):
    def texts(texts):
        names = ["anna", "bob", "juliette", "rex"]
        return [
            f"this review was submitted by {names[i % 4]} on {1 + i % 28} / {1 + i % 12} and marked as helpful by "
            f"{i % 50} of the readers of this site . the full text of the review follows : {text}"
            for i, text in enumerate(texts)
        ]

    setup.texts = texts


def validation_labels_turned_round(setup):
    def rows(texts, labels):
        texts, labels = some_rows(setup.dataset, "validation", NUM_VALIDATION)
        return texts, 1 - labels

    setup.validation_rows = rows


FAULTS = {
    "data-exhausted": [generator_made_once, filter_that_keeps_nothing],
    "labels-out-of-range": [labels_1_and_2, labels_minus_1_and_1, labels_0_and_255, labels_with_missing_ones],
    "one-class": [only_the_positives, slice_of_sorted_rows, weights_by_integer_division],
    "labels-not-shuffled": [sorted_by_label, positives_then_negatives, shuffle_buffer_too_small],
    "texts-empty-or-constant": [empty_texts, one_text_for_all, missing_texts_filled],
    "input-order-wrong": [tokens_and_mask_swapped, tokens_and_segments_swapped],
    "padding-mask-wrong": [mask_inverted, mask_of_ones, mask_to_be_added, mask_inverted_in_the_model],
    "tokenizer-mismatch": [
        capitals_unknown_to_the_vocabulary,
        vocabulary_of_few_words,
        vocabulary_of_another_model,
        words_by_text_vectorization,
        ids_counted_from_one,
    ],
    "texts-truncated": [cut_at_6_tokens, cut_at_8_tokens, cut_behind_a_header],
    "class-imbalance": [rare_positives_2_percent, rare_positives_5_percent, rare_negatives_3_percent],
    "labels-unrelated": [permuted_labels, labels_slipped_by_one, random_labels, labels_slipped_by_two_in_runs],
    "leak-between-splits": [validation_from_training_rows, half_of_validation_from_training_rows],
    "train-validation-mismatch": [
        validation_of_positives,
        validation_in_another_language,
        validation_labels_turned_round,
    ],
}
