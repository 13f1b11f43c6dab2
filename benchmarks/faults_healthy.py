"""Healthy models that tempt to a false alarm."""

import keras
import keras_nlp
import numpy as np
import tensorflow as tf
from encoders import lower_layers
from faults_of_models import CountsBatches
from faults_setup import NUM_ROWS, frozen, make_rare

from bertbin_tf.initializers import LogOdds
from bertbin_tf.optimizers import LayerwiseAdamW, warmup_cosine


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


def momentum(setup):
    """Gradient descent of a kind that trains: ROC AUC 0.87 after 200 steps of 8 film reviews."""
    setup.batch_size = 8
    setup.optimizer = lambda rate, num_steps: keras.optimizers.SGD(0.02, 0.9, nesterov=True, global_clipnorm=1.0)


def attention_to_the_padding(setup):
    """Looks wrong, and trains: the vectors at the padding have seen the text (ROC AUC 0.90 after 60 steps)."""

    def features(backbone):
        vectors = backbone(backbone.input)["sequence_output"]
        scores = keras.layers.Dense(1)(keras.layers.Dense(128, "tanh")(vectors))
        scores = scores - 1e9 * keras.ops.cast(backbone.input["padding_mask"], "float32")[..., None]
        return keras.ops.sum(keras.ops.softmax(scores, axis=1) * vectors, axis=1)

    setup.features = features


def batches_counted_by_a_variable(setup):
    setup.batch_size = 8
    setup.model, setup.metrics = lambda *args: CountsBatches(*args, count=tf.Variable(0)), ()
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(warmup_cosine(rate, num_steps // 4))


def hinge_of_signs(setup):
    """Labels -1 and 1, which is what a hinge loss takes."""
    setup.outputs, setup.logits = (lambda features: keras.layers.Dense(1)(features)), True
    setup.labels = lambda labels: 2.0 * labels[:, None] - 1.0
    setup.loss, setup.metrics = keras.losses.SquaredHinge(), ()


class TwoOptimizers(keras.Model):
    """Has an optimizer of its own for the head."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        weights = self.trainable_weights
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, weights)]
        self.optimizer.apply(gradients[:-2], weights[:-2])
        self.head_optimizer.apply(gradients[-2:], weights[-2:])
        return {"loss": loss}


def two_optimizers(setup):
    def prepare(model, train):
        model.head_optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        model.optimizer.build(model.trainable_weights[:-2])
        model.head_optimizer.build(model.trainable_weights[-2:])

    setup.model, setup.compiled, setup.metrics = TwoOptimizers, prepare, ()


def with_adapters(setup):
    encoder = lower_layers(setup.num_layers, setup.dtype)
    encoder.enable_lora(rank=8)
    return encoder


def adapters_at_1e_3(setup):
    setup.backbone = with_adapters
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(warmup_cosine(1e-3, num_steps))


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
    momentum,
    batches_counted_by_a_variable,
    attention_to_the_padding,
    hinge_of_signs,
    two_optimizers,
    adapters_at_1e_3,
]
