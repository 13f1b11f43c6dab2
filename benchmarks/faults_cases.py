"""The models and data of `faults.py`: healthy ones, and each fault as a user would have written it.

A `Setup` holds what a user's script has: rows, tokens, encoder, head, loss, optimizer. A fault is a small function that
changes one of them; its name is the name of the case.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import keras_nlp
import numpy as np
import tensorflow as tf

from bertbin_tf import data
from bertbin_tf.initializers import LogOdds
from bertbin_tf.models import load_backbone, load_preprocessor
from bertbin_tf.optimizers import LayerwiseAdamW, warmup_cosine

RATE = 1e-4  # 2e-3 of MiniLM's weights in a step
NUM_ROWS, NUM_VALIDATION, NUM_TEST = 1920, 320, 640


@dataclasses.dataclass
class Setup:
    """A user's script: each field is a part of it that a fault may replace.

    Args:
        dataset: "movies" or "tweets" of `vader`.
        num_layers: Int, the lower layers of MiniLM that are kept.
        hidden_dim: Int, units of a hidden layer in the head, or `None`.
        seed: Int.
    """

    dataset: str = "movies"
    num_layers: int = 6
    hidden_dim: int | None = None
    seed: int = 0
    num_rows: int = NUM_ROWS
    sequence_length: int = 32
    batch_size: int = 32
    epochs: int = 1
    dropout: float = 0.1
    dtype: str | None = None
    loss: Any = "binary_crossentropy"
    metrics: tuple = ("accuracy",)
    rate: float = RATE
    optimizer: Callable = lambda rate, num_steps: keras.optimizers.AdamW(warmup_cosine(rate, num_steps))
    rows: Callable = lambda texts, labels: (texts, labels)
    validation_rows: Callable | None = None
    labels: Callable = lambda labels: labels
    tokenizer: Callable = lambda: load_preprocessor("minilm").tokenizer
    texts: Callable = lambda texts: texts
    tokens: Callable = lambda tokens: tokens
    order: Callable = lambda labels: np.random.default_rng(0).permutation(len(labels))
    batches: Callable | None = None
    backbone: Callable = lambda setup: lower_layers(setup.num_layers, setup.dtype)
    features: Callable = lambda backbone: backbone(backbone.input)["pooled_output"]
    outputs: Callable = lambda features: keras.layers.Dense(1, "sigmoid", dtype="float32", name="probability")(features)
    logits: bool = False  # whether the outputs are
    model: Callable = keras.Model
    compiled: Callable = lambda model, train: None

    def build(self):
        """Returns `(model, train_data, validation_data)`, all as the user has them."""
        keras.utils.set_random_seed(self.seed)
        texts, labels = self.rows(*some_rows(self.dataset, "train", self.num_rows))
        validation = some_rows(self.dataset, "validation", NUM_VALIDATION)
        if self.validation_rows is not None:
            validation = self.validation_rows(texts, labels)
        tokens, labels = self.encode(texts), self.labels(np.asarray(labels))
        order = self.order(labels)
        tokens, labels = {name: array[order] for name, array in tokens.items()}, labels[order]
        train = (self.batches or self.plain_batches)(tokens, labels)
        model = self.build_model(math.ceil(len(labels) / self.batch_size) * self.epochs)
        self.compiled(model, train)
        validation_labels = self.labels(np.asarray(validation[1]))
        return model, train, self.plain_batches(self.encode(validation[0]), validation_labels)

    def build_model(self, num_steps):
        backbone = self.backbone(self)
        features = keras.layers.Dropout(self.dropout)(self.features(backbone))
        if self.hidden_dim is not None:
            features = keras.layers.Dense(self.hidden_dim, "tanh", name="hidden")(features)
        model = self.model(backbone.input, self.outputs(features))
        model.compile(self.optimizer(self.rate, num_steps), self.loss, metrics=list(self.metrics))
        return model

    def plain_batches(self, tokens, labels):
        return tf.data.Dataset.from_tensor_slices((tokens, labels)).batch(self.batch_size)

    def encode(self, texts):
        preprocess = keras_nlp.models.BertTextClassifierPreprocessor(self.tokenizer(), self.sequence_length)
        tokens = preprocess(list(self.texts(texts)))
        return self.tokens({name: np.asarray(array, "int32") for name, array in tokens.items()})


BASES = {
    "6 layers, movies": {},
    "3 layers, tweets": {"dataset": "tweets", "num_layers": 3},
    "3 layers, hidden head, movies": {"num_layers": 3, "hidden_dim": 64},
}


@functools.cache
def some_rows(dataset, part, num_rows):
    """Rows of a dataset, the classes as they come, none of them in two parts."""
    texts, labels = data.collect(data.read(f"vader/{dataset}:{'test' if part == 'test' else 'train'}"))
    order = np.random.default_rng(1).permutation(len(labels))
    order = order[-num_rows:] if part == "validation" else order[:num_rows]
    return [texts[i].decode() for i in order], np.asarray(labels)[order]


def lower_layers(num_layers, dtype=None):
    """The lower layers of MiniLM, as another real encoder."""
    whole = load_backbone("minilm", **({} if dtype is None else {"dtype": dtype}))
    if num_layers == whole.num_layers:
        return whole
    lower = keras_nlp.models.BertBackbone.from_config(whole.get_config() | {"num_layers": num_layers})
    for layer in lower.layers:
        layer.set_weights(whole.get_layer(layer.name).get_weights())
    return lower


def random_bert(setup):
    """An encoder of MiniLM's shape that nobody trained."""
    return keras_nlp.models.BertBackbone.from_config(lower_layers(setup.num_layers).get_config())


# --- data


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


def mask_of_ones(setup):
    setup.tokens = lambda tokens: tokens | {"padding_mask": np.ones_like(tokens["padding_mask"])}
    setup.sequence_length = 96


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


def make_rare(setup, share):
    """Takes rows, for training and validation, of which a share is positive."""

    def rows(part, num_rows):
        texts, labels = some_rows("movies", part, 4000)
        negative, positive = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
        num_positive = round(num_rows * share)
        chosen = np.concatenate([negative[: num_rows - num_positive], positive[:num_positive]])
        return [texts[i] for i in chosen], labels[chosen]

    setup.dataset = "movies"
    setup.rows = lambda texts, labels: rows("train", NUM_ROWS)
    setup.validation_rows = lambda texts, labels: rows("validation", NUM_VALIDATION)


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


# --- weights


def one_weight_nan(setup):
    setup.compiled = lambda model, train: model.get_layer("probability").bias.assign([np.nan])


def division_by_zero(setup):
    def features(backbone):
        pooled = backbone(backbone.input)["pooled_output"]
        return keras.ops.divide(pooled, keras.ops.std(pooled * 0.0, axis=-1, keepdims=True))

    setup.features = features


def logarithm_of_features(setup):
    setup.features = lambda backbone: keras.ops.log(backbone(backbone.input)["pooled_output"])


def float16_without_loss_scaling(setup):
    setup.dtype = "float16"


def weights_not_loaded(setup):
    setup.backbone = random_bert


def unfrozen_without_compile(setup):
    def compiled(model, train):
        backbone = next(layer for layer in model.layers if isinstance(layer, keras.Model))
        backbone.trainable = False
        model.compile(keras.optimizers.Adam(setup.rate), setup.loss, metrics=list(setup.metrics))
        model.fit(train.take(1), verbose=0)
        backbone.trainable = True

    setup.compiled = compiled


def all_frozen(setup):
    def compiled(model, train):
        model.trainable = False
        model.compile(keras.optimizers.AdamW(setup.rate), setup.loss, metrics=list(setup.metrics))

    setup.compiled = compiled


def rate_of_zero(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(0.0)


def frozen(setup):
    def backbone(setup):
        encoder = lower_layers(setup.num_layers, setup.dtype)
        encoder.trainable = False
        return encoder

    setup.backbone = backbone


def frozen_under_2e_5(setup):
    frozen(setup)
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adam(2e-5)


def frozen_under_5e_6(setup):
    frozen(setup)
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(5e-6)


def dropout_of_95_percent(setup):
    setup.dropout = 0.95


def dropout_of_99_percent(setup):
    setup.dropout = 0.99


# --- head and loss


class OwnLoss(keras.Model):
    """A user's own loss, of labels as they come: `(rows,)` beside answers of `(rows, 1)`."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        y, p = tf.cast(y, y_pred.dtype), tf.clip_by_value(y_pred, 1e-7, 1 - 1e-7)
        return -tf.reduce_mean(y * tf.math.log(p) + (1 - y) * tf.math.log(1 - p))


class OwnSquaredLoss(OwnLoss):
    """The same of a squared error."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return tf.reduce_mean(tf.square(tf.cast(y, y_pred.dtype) - y_pred))


def loss_that_broadcasts(setup):
    setup.model = OwnLoss


def squared_loss_that_broadcasts(setup):
    setup.model = OwnSquaredLoss


def softmax_over_one_unit(setup):
    setup.outputs = lambda features: keras.layers.Dense(1, "softmax", name="probability")(features)


def softmax_layer_over_one_unit(setup):
    setup.outputs = lambda features: keras.layers.Softmax()(keras.layers.Dense(1, name="probability")(features))


def sigmoid_layer_over_sigmoid(setup):
    setup.outputs = lambda features: keras.layers.Activation("sigmoid")(keras.layers.Dense(1, "sigmoid")(features))


def from_logits_of_a_sigmoid_in_a_lambda(setup):
    setup.outputs = lambda features: keras.ops.multiply(keras.layers.Dense(1, "sigmoid")(features), 1.0)
    setup.loss = keras.losses.BinaryCrossentropy(from_logits=True)


def logits_without_from_logits(setup):
    setup.logits = True
    setup.outputs = lambda features: keras.layers.Dense(1, name="logit")(features)
    setup.metrics = (keras.metrics.BinaryAccuracy(threshold=0.0),)


def categorical_loss_of_one_unit(setup):
    setup.loss = "categorical_crossentropy"


def hinge_of_probabilities(setup):
    setup.loss = "hinge"


def squared_error(setup):
    setup.loss = "mse"


def head_drawn_too_large(setup):
    draw = keras.initializers.RandomNormal(stddev=20.0, seed=1)
    setup.outputs = lambda features: keras.layers.Dense(1, "sigmoid", kernel_initializer=draw)(features)


def bias_of_60(setup):
    setup.outputs = lambda features: keras.layers.Dense(1, "sigmoid", bias_initializer=keras.initializers.Constant(60))(
        features
    )


def features_times_1000(setup):
    setup.features = lambda backbone: 1000.0 * backbone(backbone.input)["pooled_output"]


# --- rates


def gradient_descent_at_1e_3(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.SGD(1e-3)


def gradient_descent_at_5e_5(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.SGD(5e-5, momentum=0.9)


def adadelta(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adadelta()


def clipped_at_1e_9(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adam(rate, global_clipnorm=1e-9)


def clipped_values_at_1e_10(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(rate, clipvalue=1e-10)


def steps_counted_in_epochs(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(warmup_cosine(rate, 3))


def polynomial_decay_over_5_steps(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adam(
        keras.optimizers.schedules.PolynomialDecay(rate, 5, 0.0)
    )


def warmup_of_10000_steps(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(warmup_cosine(rate, 100_000))


def adam_by_name(setup):
    setup.optimizer = lambda rate, num_steps: "adam"


def rate_of_1e_2(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(1e-2)


def rate_of_3e_3_with_warmup(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(warmup_cosine(3e-3, num_steps))


def rate_of_1e_7(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adam(1e-7)


def rate_of_1e_6_with_warmup(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(warmup_cosine(1e-6, num_steps))


def rate_of_1e_9(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(1e-9)


def weight_decay_of_300(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(rate, weight_decay=300.0)


def penalty_of_100(setup):
    def backbone(setup):
        encoder = lower_layers(setup.num_layers)
        config = encoder.get_layer("pooled_dense")
        config.kernel_regularizer = keras.regularizers.L2(100.0)
        for layer in encoder.layers:
            for weight in layer.weights:
                if weight.path.endswith("kernel"):
                    weight.regularizer = keras.regularizers.L2(100.0)
        return encoder

    setup.backbone = backbone


def one_row_a_step(setup):
    third_of_the_rows(setup)
    setup.batch_size = 1


def two_rows_a_step_at_3e_4(setup):
    third_of_the_rows(setup)
    setup.batch_size, setup.rate = 2, 3e-4


def features_divided_by_1000(setup):
    setup.features = lambda backbone: 0.001 * backbone(backbone.input)["pooled_output"]


def mean_of_normalised_features(setup):
    setup.features = lambda backbone: 1e-3 * keras.ops.mean(backbone(backbone.input)["sequence_output"], axis=1)


def accuracy_of_equal_numbers(setup):
    setup.metrics = (keras.metrics.Accuracy(),)


def accuracy_of_logits(setup):
    logits_with_from_logits(setup)
    setup.metrics = ("accuracy",)


def category_of_one_unit(setup):
    setup.metrics = ("categorical_accuracy",)


def many_epochs_on_few_rows(setup):
    setup.num_rows, setup.batch_size = 96, 16
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adam(rate)
    setup.compiled = lambda model, train: model.fit(train, epochs=15, verbose=0)


FAULTS = {
    "data-exhausted": [generator_made_once, filter_that_keeps_nothing],
    "labels-out-of-range": [labels_1_and_2, labels_minus_1_and_1, labels_0_and_255, labels_with_missing_ones],
    "one-class": [only_the_positives, slice_of_sorted_rows],
    "labels-not-shuffled": [sorted_by_label, positives_then_negatives, shuffle_buffer_too_small],
    "texts-empty-or-constant": [empty_texts, one_text_for_all, missing_texts_filled],
    "input-order-wrong": [tokens_and_mask_swapped, tokens_and_segments_swapped],
    "padding-mask-wrong": [mask_inverted, mask_of_ones],
    "tokenizer-mismatch": [
        capitals_unknown_to_the_vocabulary,
        vocabulary_of_few_words,
        vocabulary_of_another_model,
    ],
    "texts-truncated": [cut_at_6_tokens, cut_at_8_tokens],
    "class-imbalance": [rare_positives_2_percent, rare_positives_5_percent, rare_negatives_3_percent],
    "labels-unrelated": [permuted_labels, labels_slipped_by_one, random_labels],
    "leak-between-splits": [validation_from_training_rows, half_of_validation_from_training_rows],
    "train-validation-mismatch": [validation_of_positives, validation_in_another_language],
    "non-finite": [one_weight_nan, division_by_zero, logarithm_of_features],
    "half-precision-overflow": [float16_without_loss_scaling],
    "weights-not-loaded": [weights_not_loaded],
    "stale-compile": [unfrozen_without_compile],
    "nothing-trains": [all_frozen, rate_of_zero],
    "backbone-frozen": [frozen_under_2e_5, frozen_under_5e_6],
    "dropout-too-strong": [dropout_of_95_percent, dropout_of_99_percent],
    "label-shape-broadcast": [loss_that_broadcasts, squared_loss_that_broadcasts],
    "single-unit-softmax": [softmax_over_one_unit, softmax_layer_over_one_unit],
    "sigmoid-twice": [sigmoid_layer_over_sigmoid, from_logits_of_a_sigmoid_in_a_lambda],
    "logits-taken-for-probabilities": [logits_without_from_logits],
    "loss-unsuited": [categorical_loss_of_one_unit, hinge_of_probabilities, squared_error],
    "head-saturated": [head_drawn_too_large, bias_of_60, features_times_1000],
    "optimizer-unsuited": [gradient_descent_at_1e_3, gradient_descent_at_5e_5, adadelta],
    "gradient-clipped-to-nothing": [clipped_at_1e_9, clipped_values_at_1e_10],
    "schedule-ends-early": [steps_counted_in_epochs, polynomial_decay_over_5_steps, warmup_of_10000_steps],
    "learning-rate-too-high": [adam_by_name, rate_of_1e_2, rate_of_3e_3_with_warmup],
    "learning-rate-too-low": [rate_of_1e_7, rate_of_1e_6_with_warmup, rate_of_1e_9],
    "weight-decay-too-strong": [weight_decay_of_300, penalty_of_100],
    "batch-too-small": [one_row_a_step, two_rows_a_step_at_3e_4],
    "one-rate-cannot-fit": [features_divided_by_1000, mean_of_normalised_features],
    "metric-misreads": [accuracy_of_equal_numbers, accuracy_of_logits, category_of_one_unit],
    "overfitting": [many_epochs_on_few_rows],
}


# --- healthy ones that tempt


def as_it_is(setup):
    pass


def rare_with_its_base_rate(setup):
    make_rare(setup, 0.05)
    setup.outputs = lambda features: keras.layers.Dense(1, "sigmoid", bias_initializer=LogOdds(0.05))(features)


def very_rare_with_its_base_rate(setup):
    make_rare(setup, 0.02)
    setup.outputs = lambda features: keras.layers.Dense(
        1, "sigmoid", kernel_initializer="zeros", bias_initializer=LogOdds(0.02)
    )(features)


def rare_negatives_with_their_base_rate(setup):
    make_rare(setup, 0.97)
    setup.outputs = lambda features: keras.layers.Dense(1, "sigmoid", bias_initializer=LogOdds(0.97))(features)


def third_of_the_rows(setup):
    setup.num_rows = NUM_ROWS // 3


def third_of_the_rows_three_times(setup):
    third_of_the_rows(setup)
    setup.epochs = 3


def rate_of_1e_5(setup):
    setup.rate = 1e-5


def rate_of_3e_5_without_warmup(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adam(3e-5)


def frozen_under_a_good_rate(setup):
    frozen(setup)
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adam(5e-3)


def bfloat16(setup):
    setup.dtype = "mixed_bfloat16"


def float16_with_loss_scaling(setup):
    setup.dtype = "mixed_float16"
    setup.optimizer = lambda rate, num_steps: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.AdamW(warmup_cosine(rate, num_steps))
    )


def long_texts(setup):
    setup.sequence_length, setup.batch_size, setup.num_rows = 128, 8, 400
    setup.rows = lambda texts, labels: ([" ".join([text] * 5) for text in texts], labels)


def noisy_labels(setup):
    def rows(texts, labels):
        return texts, np.where(np.random.default_rng(5).random(len(labels)) < 0.15, 1 - labels, labels)

    setup.rows = rows


def large_hidden_head(setup):
    setup.hidden_dim = 256


def mean_pooling(setup):
    def features(backbone):
        outputs = backbone(backbone.input)["sequence_output"]
        mask = keras.ops.cast(backbone.input["padding_mask"], "float32")[..., None]
        return keras.ops.sum(outputs * mask, 1) / keras.ops.sum(mask, 1)

    setup.features = features


def first_token(setup):
    setup.features = lambda backbone: backbone(backbone.input)["sequence_output"][:, 0, :]


def roberta_shaped(setup):
    def backbone(setup):
        return keras_nlp.models.RobertaBackbone(
            vocabulary_size=30522, num_layers=2, num_heads=4, hidden_dim=64, intermediate_dim=128
        )

    def features(backbone):
        return backbone(backbone.input)[:, 0, :]

    setup.backbone, setup.features = backbone, features
    setup.tokens = lambda tokens: {name: tokens[name] for name in ("token_ids", "padding_mask")}


def generator(setup):
    def batches(tokens, labels):
        made = list(setup.plain_batches(tokens, labels))
        spec = setup.plain_batches(tokens, labels).element_spec
        return tf.data.Dataset.from_generator(lambda: iter(made), output_signature=spec)

    setup.batches = batches


def repeated_for_steps_per_epoch(setup):
    setup.batches = lambda tokens, labels: setup.plain_batches(tokens, labels).repeat()


def arrays_sorted_by_label(setup):
    setup.order = lambda labels: np.argsort(labels, kind="stable")
    setup.batches = lambda tokens, labels: (tokens, labels)


def focal_loss(setup):
    setup.loss = keras.losses.BinaryFocalCrossentropy()


def smoothed_labels(setup):
    setup.loss = keras.losses.BinaryCrossentropy(label_smoothing=0.1)


def two_softmax_outputs(setup):
    setup.outputs = lambda features: keras.layers.Dense(2, "softmax", dtype="float32")(features)
    setup.loss = "sparse_categorical_crossentropy"


def two_logits_one_hot(setup):
    setup.logits = True
    setup.outputs = lambda features: keras.layers.Dense(2, dtype="float32")(features)
    setup.loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    setup.batches = lambda tokens, labels: setup.plain_batches(tokens, np.eye(2, dtype="float32")[labels])


def logits_with_from_logits(setup):
    setup.logits = True
    setup.outputs = lambda features: keras.layers.Dense(1)(features)
    setup.loss = keras.losses.BinaryCrossentropy(from_logits=True)
    setup.metrics = (keras.metrics.BinaryAccuracy(threshold=0.0),)


def rates_by_layer(setup):
    setup.optimizer = lambda rate, num_steps: LayerwiseAdamW(warmup_cosine(rate, num_steps), {"probability": 10.0})


def gradient_accumulation(setup):
    setup.batch_size = 8
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(rate, gradient_accumulation_steps=4)


def clipped_at_1(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(warmup_cosine(rate, num_steps), global_clipnorm=1)


def few_rows(setup):
    setup.num_rows = 240


def weights_by_row(setup):
    def batches(tokens, labels):
        weights = np.where(labels == 1, 1.5, 0.75).astype("float32")
        return tf.data.Dataset.from_tensor_slices((tokens, labels, weights)).batch(setup.batch_size)

    setup.batches = batches


HEALTHY = [
    as_it_is,
    rare_with_its_base_rate,
    very_rare_with_its_base_rate,
    rare_negatives_with_their_base_rate,
    third_of_the_rows,
    third_of_the_rows_three_times,
    rate_of_1e_5,
    rate_of_3e_5_without_warmup,
    frozen_under_a_good_rate,
    bfloat16,
    float16_with_loss_scaling,
    long_texts,
    noisy_labels,
    large_hidden_head,
    mean_pooling,
    first_token,
    roberta_shaped,
    generator,
    repeated_for_steps_per_epoch,
    arrays_sorted_by_label,
    focal_loss,
    smoothed_labels,
    two_softmax_outputs,
    two_logits_one_hot,
    logits_with_from_logits,
    rates_by_layer,
    gradient_accumulation,
    clipped_at_1,
    few_rows,
    weights_by_row,
]

# What a fault is compared with, where that is not the base as it is.
TWINS = {
    rare_positives_2_percent: very_rare_with_its_base_rate,
    rare_positives_5_percent: rare_with_its_base_rate,
    rare_negatives_3_percent: rare_negatives_with_their_base_rate,
    generator_made_once: third_of_the_rows_three_times,
    one_row_a_step: third_of_the_rows,
    two_rows_a_step_at_3e_4: third_of_the_rows,
}

PAIRS = [
    (adam_by_name, sorted_by_label),
    (adam_by_name, labels_1_and_2),
    (rate_of_1e_7, mask_inverted),
    (rate_of_1e_2, sigmoid_layer_over_sigmoid),
    (frozen_under_2e_5, cut_at_6_tokens),
    (steps_counted_in_epochs, sorted_by_label),
    (weights_not_loaded, adam_by_name),
    (gradient_descent_at_5e_5, dropout_of_95_percent),
    (squared_error, rate_of_1e_7),
    (clipped_at_1e_9, capitals_unknown_to_the_vocabulary),
    (logits_without_from_logits, adam_by_name),
    (validation_from_training_rows, rate_of_1e_2),
]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and data with no, one or two faults.

    Args:
        base: Key of `BASES`.
        faults: Tuple of functions that change a `Setup`.
        codes: Tuple of the codes of the faults.
    """

    base: str
    faults: tuple
    codes: tuple = ()

    @property
    def name(self) -> str:
        return " + ".join(fault.__name__ for fault in self.faults) + f" ({self.base})"

    @property
    def twin(self) -> "Case":
        """The healthy case to compare with."""
        return Case(self.base, (TWINS.get(self.faults[0], as_it_is),))

    def setup(self) -> Setup:
        """Returns the script with its faults."""
        setup = Setup(**BASES[self.base])
        for fault in self.faults:
            fault(setup)
        return setup


def code_of(fault):
    return next(code for code, faults in FAULTS.items() if fault in faults)


def faulty_cases() -> list[Case]:
    """Three at least of each code, spread over the bases."""
    bases, cases = list(BASES), []
    for number, (code, faults) in enumerate(FAULTS.items()):
        for i in range(max(3, len(faults))):
            cases.append(Case(bases[(i + number) % len(bases)], (faults[i % len(faults)],), (code,)))
    return cases


def healthy_cases() -> list[Case]:
    """Each once, spread over the bases, and each base as it is."""
    bases = list(BASES)
    changed = [Case(bases[i % len(bases)], (change,)) for i, change in enumerate(HEALTHY) if change is not as_it_is]
    return [*(Case(base, (as_it_is,)) for base in bases), *changed]


def pairs_of_faults() -> list[Case]:
    """Two faults at once."""
    bases = list(BASES)
    return [Case(bases[i % len(bases)], pair, tuple(map(code_of, pair))) for i, pair in enumerate(PAIRS)]
