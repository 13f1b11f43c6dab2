"""Faults of weights, head and loss, each as a user would have written it; its name is the name of the case."""

import keras
import numpy as np
import tensorflow as tf
from faults_setup import frozen, random_bert

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


def weights_of_no_votes(setup):
    """A row counts by the share of its votes that were good: where there were none, 0 / 0."""

    def batches(tokens, labels):
        votes = np.random.default_rng(0).poisson(4, len(labels))
        with np.errstate(invalid="ignore"):
            weights = (np.random.default_rng(1).binomial(votes, 0.7) / votes).astype("float32")
        return tf.data.Dataset.from_tensor_slices((tokens, labels, weights)).batch(setup.batch_size)

    setup.batches = batches


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


def added_up_over_100_batches(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(rate, gradient_accumulation_steps=100)


def kernels_of_zeros(setup):
    def outputs(features):
        hidden = keras.layers.Dense(64, "relu", kernel_initializer="zeros")(features)
        return keras.layers.Dense(1, "sigmoid", kernel_initializer="zeros", name="probability")(hidden)

    setup.outputs = outputs


def encoder_in_a_lambda(setup):
    def features(backbone):
        return keras.layers.Lambda(lambda x: backbone(x)["pooled_output"], output_shape=(384,))(backbone.input)

    setup.features = features


def frozen_under_2e_5(setup):
    frozen(setup)
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adam(2e-5)


def frozen_under_5e_6(setup):
    frozen(setup)
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(5e-6)


def features_without_a_gradient(setup):
    setup.features = lambda backbone: keras.ops.stop_gradient(backbone(backbone.input)["sequence_output"][:, 0])
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adam(2e-5)


def dropout_of_95_percent(setup):
    setup.dropout = 0.95


def dropout_of_99_percent(setup):
    setup.dropout = 0.99


class Drop(keras.layers.Layer):
    """Dropout by `tf.nn.dropout`, which was told the share to keep, as that of TensorFlow 1 was."""

    def call(self, x, training=False):
        return tf.nn.dropout(x, 0.95) if training else x


def dropout_that_was_told_what_to_keep(setup):
    setup.features = lambda backbone: Drop()(backbone(backbone.input)["pooled_output"])


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


class OwnStep(keras.Model):
    """A training step of a user's own, with the cross-entropy written out. It updates no metrics: none are compiled."""

    def train_step(self, data):
        x, y = data
        y = tf.cast(y, tf.float32)
        with tf.GradientTape() as tape:
            p = tf.clip_by_value(self(x, training=True), 1e-7, 1 - 1e-7)
            loss = -tf.reduce_mean(y * tf.math.log(p) + (1 - y) * tf.math.log(1 - p))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


class CountsBatches(keras.Model):
    """Adds up the gradients of four batches, which it counts, and steps after the last one of them."""

    def __init__(self, *args, count=0):
        super().__init__(*args)
        self.count = count
        self.sums = [tf.Variable(tf.zeros_like(variable)) for variable in self.trainable_variables]

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True)) / 4
        for total, gradient in zip(self.sums, tape.gradient(loss, self.trainable_variables), strict=True):
            total.assign_add(tf.convert_to_tensor(gradient))
        if isinstance(self.count, int):
            self.count += 1
            if self.count % 4 == 0:
                self.step()
        else:
            self.count.assign_add(1)
            tf.cond(self.count % 4 == 0, self.step, lambda: 0)
        return {"loss": 4 * loss}

    def step(self):
        self.optimizer.apply([tf.convert_to_tensor(total) for total in self.sums], self.trainable_variables)
        for total in self.sums:
            total.assign(tf.zeros_like(total))
        return 0


def batches_counted_in_python(setup):
    # Compiled, the count stays where it was when the step was traced.
    setup.model, setup.metrics = CountsBatches, ()


def training_step_that_broadcasts(setup):
    setup.model, setup.metrics = OwnStep, ()


def loss_that_broadcasts(setup):
    setup.model = OwnLoss


def squared_loss_that_broadcasts(setup):
    setup.model = OwnSquaredLoss


def softmax_over_one_unit(setup):
    setup.outputs = lambda features: keras.layers.Dense(1, "softmax", name="probability")(features)


def softmax_layer_over_one_unit(setup):
    setup.outputs = lambda features: keras.layers.Softmax()(keras.layers.Dense(1, name="probability")(features))


def softmax_over_the_batch(setup):
    setup.outputs = lambda features: keras.layers.Softmax(axis=0)(keras.layers.Dense(2, name="probability")(features))
    setup.loss = "sparse_categorical_crossentropy"


def focal_loss_of_a_probability_as_a_logit(setup):
    setup.loss = keras.losses.BinaryFocalCrossentropy(from_logits=True)


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


def date_in_seconds_beside_the_text(setup):
    column = keras.Input((1,), name="date")
    dates = np.random.default_rng(0).integers(1.3e9, 1.5e9, (4000, 1)).astype("float32")
    setup.tokens = lambda tokens: tokens | {"date": dates[: len(tokens["token_ids"])]}
    setup.features = lambda backbone: keras.layers.Concatenate()([backbone(backbone.input)["pooled_output"], column])
    setup.model = lambda inputs, outputs: keras.Model(inputs | {"date": column}, outputs)


FAULTS = {
    "non-finite": [one_weight_nan, division_by_zero, logarithm_of_features, weights_of_no_votes],
    "half-precision-overflow": [float16_without_loss_scaling],
    "weights-not-loaded": [weights_not_loaded],
    "stale-compile": [unfrozen_without_compile],
    "nothing-trains": [
        all_frozen,
        rate_of_zero,
        added_up_over_100_batches,
        batches_counted_in_python,
        kernels_of_zeros,
    ],
    "backbone-frozen": [frozen_under_2e_5, frozen_under_5e_6, encoder_in_a_lambda, features_without_a_gradient],
    "dropout-too-strong": [dropout_of_95_percent, dropout_of_99_percent, dropout_that_was_told_what_to_keep],
    "label-shape-broadcast": [loss_that_broadcasts, squared_loss_that_broadcasts, training_step_that_broadcasts],
    "single-unit-softmax": [softmax_over_one_unit, softmax_layer_over_one_unit, softmax_over_the_batch],
    "sigmoid-twice": [
        sigmoid_layer_over_sigmoid,
        from_logits_of_a_sigmoid_in_a_lambda,
        focal_loss_of_a_probability_as_a_logit,
    ],
    "logits-taken-for-probabilities": [logits_without_from_logits],
    "loss-unsuited": [categorical_loss_of_one_unit, hinge_of_probabilities, squared_error],
    "head-saturated": [head_drawn_too_large, bias_of_60, features_times_1000, date_in_seconds_beside_the_text],
}
