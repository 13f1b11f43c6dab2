"""Faults of rates, optimizer and metrics, each as a user would have written it; its name is the name of the case."""

import keras
import tensorflow as tf
from encoders import lower_layers
from faults_healthy import logits_with_from_logits, third_of_the_rows, with_adapters

from bertbin_tf.optimizers import warmup_cosine

# --- rates


def gradient_descent_at_1e_3(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.SGD(1e-3)


def gradient_descent_at_5e_5(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.SGD(5e-5, momentum=0.9)


def adadelta(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adadelta()


def epsilon_of_1(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(rate, epsilon=1.0)


def weights_put_back_on_their_mean(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(
        rate, use_ema=True, ema_momentum=0.999, ema_overwrite_frequency=1
    )


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


def rate_that_falls_at_each_step(setup):
    """A decay that was thought of as one per epoch."""
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(rate, decay_steps=1, decay_rate=0.9, staircase=True)
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
        encoder.get_layer("pooled_dense").kernel_regularizer = keras.regularizers.L2(100.0)
        for layer in encoder.layers:
            for weight in layer.weights:
                if weight.path.endswith("kernel"):
                    weight.regularizer = keras.regularizers.L2(100.0)
        return encoder

    setup.backbone = backbone


def penalty_on_all_weights(setup):
    def backbone(setup):
        encoder = lower_layers(setup.num_layers, setup.dtype)
        for weight in encoder.trainable_variables:
            weight.regularizer = keras.regularizers.L2(0.05)
        return encoder

    setup.backbone = backbone


class StepWithPenalty(keras.Model):
    """Adds the squares of all weights to the loss, as `kernel_regularizer` would of one layer."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
            total = loss + 0.1 * tf.add_n([tf.reduce_sum(weight**2) for weight in self.trainable_weights])
        self.optimizer.apply(tape.gradient(total, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}


def penalty_in_the_training_step(setup):
    setup.model, setup.metrics = StepWithPenalty, ()


def adapters_at_2e_5(setup):
    setup.backbone = with_adapters
    setup.optimizer = lambda rate, num_steps: keras.optimizers.AdamW(warmup_cosine(2e-5, num_steps))


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


class Noam(keras.optimizers.schedules.LearningRateSchedule):
    """The schedule of Vaswani et al., 2017, section 5.3, as their tutorial has it: it cannot be saved."""

    def __call__(self, step):
        step = tf.cast(step, tf.float32) + 1
        return 384**-0.5 * tf.minimum(step**-0.5, step * 100**-1.5)


def schedule_of_another_model(setup):
    setup.optimizer = lambda rate, num_steps: keras.optimizers.Adam(Noam(), beta_2=0.98, epsilon=1e-9)


FAULTS = {
    "optimizer-unsuited": [
        gradient_descent_at_1e_3,
        gradient_descent_at_5e_5,
        adadelta,
        epsilon_of_1,
        weights_put_back_on_their_mean,
    ],
    "gradient-clipped-to-nothing": [clipped_at_1e_9, clipped_values_at_1e_10],
    "schedule-ends-early": [
        steps_counted_in_epochs,
        polynomial_decay_over_5_steps,
        warmup_of_10000_steps,
        rate_that_falls_at_each_step,
    ],
    "learning-rate-too-high": [adam_by_name, rate_of_1e_2, rate_of_3e_3_with_warmup, schedule_of_another_model],
    "learning-rate-too-low": [rate_of_1e_7, rate_of_1e_6_with_warmup, rate_of_1e_9, adapters_at_2e_5],
    "weight-decay-too-strong": [
        weight_decay_of_300,
        penalty_of_100,
        penalty_on_all_weights,
        penalty_in_the_training_step,
    ],
    "batch-too-small": [one_row_a_step, two_rows_a_step_at_3e_4],
    "one-rate-cannot-fit": [features_divided_by_1000, mean_of_normalised_features],
    "metric-misreads": [accuracy_of_equal_numbers, accuracy_of_logits, category_of_one_unit],
    "overfitting": [many_epochs_on_few_rows],
}
