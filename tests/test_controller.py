import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import build_tiny_backbone
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertbin_tf.callbacks import (
    LayerwiseLearningRateController,
    LearningRateScheduleCheck,
    SaturationMonitor,
    gradual_unfreezing,
)
from bertbin_tf.metrics import LogitStatistics
from bertbin_tf.models import binary_classifier
from bertbin_tf.optimizers import LayerwiseAdamW, layerwise_decay, warmup_cosine

ANYTHING = {"band": (1e-9, 1e9), "head_band": (1e-9, 1e9)}


@pytest.fixture
def tiny_backbone():
    return build_tiny_backbone(dropout=0.0)


@pytest.fixture
def batch(tiny_preprocessor, tiny_reviews):
    texts, labels = tiny_reviews
    return tiny_preprocessor(texts[:64]), np.array(labels[:64])


def compiled(backbone, optimizer, metrics=True, **kwargs):
    keras.utils.set_random_seed(0)
    model = binary_classifier(backbone, dropout=0.0)
    statistics = [LogitStatistics()] if metrics else []
    model.compile(optimizer, "binary_crossentropy", metrics=statistics, **({"run_eagerly": True} | kwargs))
    return model


def fit(model, batch, *callbacks, epochs=5):
    """Eight steps an epoch."""
    return model.fit(*batch, batch_size=8, epochs=epochs, shuffle=False, callbacks=list(callbacks), verbose=0).history


def planted(model, step, plant):
    """A callback that does something to the model after one step."""

    def act(batch, logs):
        if int(model.optimizer.iterations) == step and not planted_at:
            planted_at.append(step)
            plant()

    planted_at = []
    return keras.callbacks.LambdaCallback(on_train_batch_end=act)


def too_fast_from_step_1(model):
    def unbound():
        model.optimizer.set_multipliers(dict.fromkeys(model.optimizer.multipliers, 1.0))

    return planted(model, 1, unbound)


def test_healthy_run_is_left_alone(tiny_backbone, batch):
    controller = LayerwiseLearningRateController(**ANYTHING, every=4)
    model = compiled(tiny_backbone, LayerwiseAdamW(3e-2), run_eagerly=False)
    start = model.get_weights()
    history = fit(model, batch, controller)
    assert history["loss"][-1] < 0.1
    assert controller.interventions == [] and history["interventions"] == [0] * 5
    watched = model.get_weights()
    alone = compiled(tiny_backbone, LayerwiseAdamW(3e-2), run_eagerly=False)
    alone.set_weights(start)
    fit(alone, batch)
    assert all(np.array_equal(a, b) for a, b in zip(watched, alone.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("rate", "pooler_is_new"), [(1e-6, True), (1e-6, False), (1e-2, True), (10.0, True), (1e20, False)]
)
def test_any_rate_asked_for_begins_inside_the_band(tiny_backbone, batch, rate, pooler_is_new):
    if not pooler_is_new:
        kernel = tiny_backbone.get_layer("pooled_dense").kernel
        kernel.assign(2 * kernel)
    model = compiled(tiny_backbone, None)
    optimizer = LayerwiseAdamW(warmup_cosine(rate, 8), layerwise_decay(model, 0.5) | {"segment_embedding": 0.0})
    model.compile(optimizer, "binary_crossentropy", metrics=[LogitStatistics()], run_eagerly=True)
    controller = LayerwiseLearningRateController(band=(1e-3, 2e-3), head_band=(0.1, 0.2), every=100)
    optimizer.build(model.trainable_variables)
    weights = optimizer.weight_rms()
    fit(model, batch, controller, epochs=1)
    relative = {layer: rate * value / weights[layer] for layer, value in optimizer.multipliers.items()}
    edge, head_edge = (1e-3, 0.1) if rate < 1e-3 else (2e-3, 0.2)
    assert relative.pop("segment_embedding") == 0  # frozen stays frozen
    if rate != 1e-2:
        np.testing.assert_allclose(relative["logit"], head_edge, rtol=1e-3)
        np.testing.assert_allclose(relative["pooled_dense"], head_edge if pooler_is_new else edge, rtol=1e-3)
        # The band is that of the encoder's fastest layer, the pooler if it was trained.
        fastest = edge if pooler_is_new else edge / 2
        np.testing.assert_allclose(relative["transformer_layer_1"], fastest, rtol=1e-3)
        np.testing.assert_allclose(relative["transformer_layer_0"], fastest / 2, rtol=1e-3)
        assert [intervention.step for intervention in controller.interventions] == [0]
    assert all(0 < value <= 0.2 * (1 + 1e-3) for value in relative.values())
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_collapse_restores_the_last_good_state_and_slows_the_fastest(tiny_backbone, batch):
    model = compiled(tiny_backbone, LayerwiseAdamW(3e-2, measure_every=4))
    head = model.get_layer("logit")
    controller = LayerwiseLearningRateController(**ANYTHING, every=4)
    kept = {}

    def remember():
        kept["head"] = head.get_weights()[0].copy()

    def flatten():
        head.set_weights([np.zeros_like(weight) for weight in head.get_weights()])
        model.optimizer.set_multiplier("logit", 1e-12)  # or the head would be back before the next look

    # States are kept every five looks: that of step 20.
    watch = [planted(model, 20, remember), planted(model, 28, flatten), controller]
    history = fit(model, batch, *watch, epochs=4)
    (intervention,) = controller.interventions
    assert intervention.step == 32 and "the spread of the logits fell from" in intervention.seen
    assert "restored the weights and the optimizer of step 20 and halved the rates of" in intervention.done
    assert sum(history["interventions"]) == 1
    assert min(model.optimizer.multipliers.values()) < 1
    np.testing.assert_array_equal(head.get_weights()[0], kept["head"])


def test_loss_that_is_not_finite_is_taken_back(tiny_backbone, batch):
    model = compiled(tiny_backbone, LayerwiseAdamW(1e-2))
    head = model.get_layer("logit")
    explode = planted(model, 10, lambda: head.set_weights([weight * np.nan for weight in head.get_weights()]))
    controller = LayerwiseLearningRateController(**ANYTHING, every=4)
    history = fit(model, batch, explode, controller, epochs=4)
    assert controller.interventions[0].seen == "the loss is not finite"
    assert len(controller.interventions) == 1
    assert np.isfinite(history["loss"][-1])
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_gives_up_when_restoring_does_not_help(tiny_backbone, batch):
    labels = np.full(64, np.nan, "float32")
    model = compiled(tiny_backbone, LayerwiseAdamW(1e-2))
    controller = LayerwiseLearningRateController(**ANYTHING, every=2)
    fit(model, (batch[0], labels), controller, epochs=4)
    assert [line.done.startswith("restored") for line in controller.interventions] == [True] * 4 + [False]
    assert "gave up" in controller.interventions[-1].done


def test_layer_that_moves_too_fast_is_slowed(tiny_backbone, batch):
    model = compiled(tiny_backbone, LayerwiseAdamW(1e-2, measure_every=1))
    controller = LayerwiseLearningRateController(band=(1e-9, 1e-4), head_band=(1e-9, 1e9), every=2)
    fit(model, batch, controller, too_fast_from_step_1(model), epochs=4)
    assert "of their weights in a step" in controller.interventions[1].seen  # the first one is before the first step
    multipliers = model.optimizer.multipliers
    assert multipliers["transformer_layer_0"] < 0.1 and multipliers["logit"] == 1
    assert model.optimizer.statistics["transformer_layer_0"].relative_step < 2e-4


def test_one_measurement_is_acted_on_once(tiny_backbone, batch):
    model = compiled(tiny_backbone, LayerwiseAdamW(1e-2, measure_every=7))
    controller = LayerwiseLearningRateController(band=(1e-9, 1e-4), head_band=(1e-9, 1e9), every=2)
    fit(model, batch, controller, too_fast_from_step_1(model), epochs=3)
    # What was measured at the steps 7, 14 and 21, seen by eight looks.
    assert [line.step for line in controller.interventions] == [0, 8, 16, 22]


@pytest.fixture
def trained_pooler(tiny_backbone):
    """A backbone whose pooler belongs to the encoder, before it is trained and after."""
    kernel = tiny_backbone.get_layer("pooled_dense").kernel
    kernel.assign(2 * kernel)
    return tiny_backbone


def largest_step(model):
    """The largest step relative to the weights, as a share of the band's upper edge."""
    statistics = model.optimizer.statistics.items()
    return max(measured.relative_step / (0.12 if layer == "logit" else 2.2e-3) for layer, measured in statistics)


@pytest.mark.parametrize("first_rate", [1e-6, 1e-1, None])
def test_rate_of_a_later_fit_is_bounded_too(trained_pooler, batch, first_rate):
    model = compiled(trained_pooler, LayerwiseAdamW(first_rate or 1e-2, measure_every=1))
    controller = LayerwiseLearningRateController(every=100)
    if first_rate is None:
        model.train_on_batch(*batch)  # nobody has set multipliers
    else:
        fit(model, batch, controller, epochs=1)
        model.optimizer.learning_rate = 1e-2
    fit(model, batch, controller, epochs=1)
    assert len(controller.interventions) == 1 and "would move" in controller.interventions[0].seen
    assert 0.1 < largest_step(model) < 1.05
    before = model.optimizer.multipliers
    fit(model, batch, LayerwiseLearningRateController(every=100), epochs=1)  # at the same rate
    assert model.optimizer.multipliers == before


def test_rate_that_another_callback_raises_is_bounded(trained_pooler, batch):
    model = compiled(trained_pooler, LayerwiseAdamW(1e-6, measure_every=1))
    controller = LayerwiseLearningRateController(every=100)
    raising = keras.callbacks.LearningRateScheduler(lambda epoch, _: [1e-6, 1e-3, 1e-4][epoch])
    for epochs, share in ((1, 1.0), (2, 1.0), (3, 0.1)):  # after the highest one the schedule keeps its shape
        fit(model, batch, controller, raising, epochs=epochs)
        assert 0.1 * share < largest_step(model) < 2 * share


def test_layer_that_hardly_moves_is_raised_in_a_later_fit_too(tiny_backbone, batch):
    model = compiled(tiny_backbone, LayerwiseAdamW(1e-3, measure_every=1))
    fit(model, batch, LayerwiseLearningRateController(every=100), epochs=1)
    model.optimizer.set_multiplier("transformer_layer_0", 1e-3 * model.optimizer.multipliers["transformer_layer_0"])
    # Zero gradients from here on: the moments fade, and with them the steps.
    model.compile(model.optimizer, lambda y, p: 0.0 * keras.ops.sum(p, -1), metrics=[])
    controller = LayerwiseLearningRateController(every=4)
    fit(model, batch, controller, epochs=12)
    assert any("moved by only" in line.seen for line in controller.interventions)


@pytest.mark.parametrize("rate", [1e-6, 1e-1])
def test_unfreezes_gradually_inside_the_band(trained_pooler, batch, rate):
    model = compiled(trained_pooler, LayerwiseAdamW(rate, measure_every=1))
    controller = LayerwiseLearningRateController(every=100)
    fit(model, batch, gradual_unfreezing(model), controller, epochs=2)
    moved = {layer for layer, measured in model.optimizer.statistics.items() if measured.update_norm > 0}
    assert moved == {"transformer_layer_1", "pooled_dense", "logit"}
    assert 0.1 < largest_step(model) < 1.05


def test_layer_that_is_unfrozen_by_hand_between_two_fits_is_bounded(trained_pooler, batch):
    model = compiled(trained_pooler, LayerwiseAdamW(1e-2, {"token_embedding": 0.0}, measure_every=1))
    fit(model, batch, LayerwiseLearningRateController(every=100), epochs=1)
    lowered = model.optimizer.multipliers["transformer_layer_0"] / 3
    model.optimizer.set_multipliers({"token_embedding": 1.0, "transformer_layer_0": lowered})
    controller = LayerwiseLearningRateController(every=100)
    fit(model, batch, controller, epochs=1)
    assert "token_embedding" in controller.interventions[0].seen
    assert largest_step(model) < 1.05
    assert model.optimizer.multipliers["transformer_layer_0"] == pytest.approx(lowered)


def test_schedule_comes_down_after_a_restore_too(tiny_backbone, batch):
    model = compiled(tiny_backbone, LayerwiseAdamW(warmup_cosine(1e-2, 32)))
    head = model.get_layer("logit")
    explode = planted(model, 10, lambda: head.set_weights([weight * np.nan for weight in head.get_weights()]))
    controller, check = LayerwiseLearningRateController(**ANYTHING, every=4), LearningRateScheduleCheck()
    fit(model, batch, explode, controller, check, epochs=4)
    assert "restored" in controller.interventions[-1].done
    assert int(model.optimizer.iterations) < 32
    assert float(model.optimizer.learning_rate) == pytest.approx(0.0, abs=1e-8)
    assert not check.warnings


def test_model_without_weights_is_refused(tiny_backbone, batch):
    class Classifier(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = tiny_backbone, keras.layers.Dense(1, "sigmoid", name="logit")

        def call(self, tokens):
            return self.head(self.encoder(tokens)["pooled_output"])

    model = Classifier()
    model.compile(LayerwiseAdamW(1e-1), "binary_crossentropy", run_eagerly=True)
    with pytest.raises(ValueError, match="Call the model on a batch before `fit`"):
        fit(model, batch, LayerwiseLearningRateController())
    model(batch[0])
    controller = LayerwiseLearningRateController()
    fit(model, batch, controller, epochs=1)
    assert controller.interventions[0].step == 0


def test_restoring_keeps_the_rate_that_another_callback_set(tiny_backbone, batch):
    model = compiled(tiny_backbone, LayerwiseAdamW(1e-2))
    head = model.get_layer("logit")
    explode = planted(model, 10, lambda: head.set_weights([weight * np.nan for weight in head.get_weights()]))
    lower = planted(model, 9, lambda: model.optimizer.learning_rate.assign(1e-3))
    controller = LayerwiseLearningRateController(**ANYTHING, every=4)
    fit(model, batch, lower, explode, controller, epochs=2)
    assert controller.interventions[0].done.startswith("restored")
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)


def test_statistics_that_take_logits_for_probabilities_are_told_of(tiny_backbone, batch):
    logit = keras.layers.Dense(1, name="logit")(tiny_backbone(tiny_backbone.input)["pooled_output"])
    model = keras.Model(tiny_backbone.input, logit)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(LayerwiseAdamW(1e-2), loss, metrics=[LogitStatistics()], run_eagerly=True)
    controller = LayerwiseLearningRateController(**ANYTHING, every=2)
    with pytest.warns(UserWarning, match="from_logits=True"):
        fit(model, batch, controller, epochs=2)
    assert not controller.interventions and int(model.optimizer.iterations) == 16


def test_layer_that_hardly_moves_is_raised_to_the_edge_of_the_band(tiny_backbone, batch):
    # So large an epsilon makes Adam's direction small everywhere.
    model = compiled(tiny_backbone, LayerwiseAdamW(1e-3, measure_every=1, epsilon=1e4))
    controller = LayerwiseLearningRateController(band=(1e-9, 1.0), head_band=(1e-9, 1.0), every=2)
    fit(model, batch, controller, epochs=4)
    assert "only" in controller.interventions[0].seen
    rms = model.optimizer.weight_rms()
    for layer, multiplier in model.optimizer.multipliers.items():
        assert 1e-3 * multiplier / rms[layer] <= 1.01
    assert model.optimizer.multipliers["logit"] > 1


def test_saturated_pooler_is_slowed(tiny_backbone, batch):
    model = compiled(tiny_backbone, LayerwiseAdamW(1e-6))
    pooler = tiny_backbone.get_layer("pooled_dense")
    pooler.set_weights([pooler.get_weights()[0], np.full(4, 9.0)])
    monitor, controller = SaturationMonitor(batch[0]), LayerwiseLearningRateController(**ANYTHING, every=100)
    history = fit(model, batch, monitor, controller, epochs=1)
    assert controller.interventions[-1].seen == "100% of the pooler's units are saturated"
    assert model.optimizer.multipliers["pooled_dense"] == 0.5
    assert history["saturation/pooled_dense"] == [1.0]


def test_goes_on_after_a_save_in_the_middle_of_an_intervention(tiny_backbone, batch, tmp_path):
    controller = LayerwiseLearningRateController(every=4)
    model = compiled(tiny_backbone, LayerwiseAdamW(10.0, max_relative_step=0.01))
    fit(model, batch, controller, epochs=1)
    assert controller.interventions
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    multipliers, again = model.optimizer.multipliers, LayerwiseLearningRateController(every=4)
    assert loaded.optimizer.multipliers == multipliers
    assert loaded.optimizer.statistics == model.optimizer.statistics
    fit(loaded, batch, again, epochs=1)
    assert all(line.step > 8 for line in again.interventions)  # nothing is set anew at the start


def test_works_without_logit_statistics_and_with_several_steps_to_a_call(tiny_backbone, batch):
    optimizer = LayerwiseAdamW(1.0, max_relative_step=0.01)
    model = compiled(tiny_backbone, optimizer, metrics=False, run_eagerly=False, steps_per_execution=4)
    controller = LayerwiseLearningRateController(every=3)
    history = fit(model, batch, controller, epochs=2)
    assert np.isfinite(history["loss"]).all()
    assert optimizer.multipliers["transformer_layer_0"] < 0.1


def test_tensorboard_has_layers_and_interventions(tiny_backbone, batch, tmp_path, capsys):
    model = compiled(tiny_backbone, LayerwiseAdamW(10.0))
    fit(model, batch, LayerwiseLearningRateController(every=4, log_dir=tmp_path, verbose=1), epochs=1)
    assert "step 0: a rate of 1.0e+01 would move" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()["tensors"]
    assert {"interventions", "relative_step/transformer_layer_0", "learning_rate/logit", "logits/spread"} <= set(tags)
    assert b"would move" in events.Tensors("interventions")[0].tensor_proto.string_val[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"band": (0, 1)}, r"`band` must be two numbers.*\(0, 1\)"),
        ({"head_band": (2, 1)}, r"head_band=\(2, 1\)"),
        ({"band": 2e-3}, "`band` must be two numbers.*band=0.002"),
        ({"every": "5"}, "`every` must be an integer.*every='5'"),
        ({"every": 0}, "every=0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LayerwiseLearningRateController(**arguments)


def test_what_cannot_be_controlled_is_refused(tiny_backbone, batch):
    with pytest.raises(ValueError, match="LayerwiseAdamW.*optimizer=adam"):
        fit(compiled(tiny_backbone, keras.optimizers.Adam(name="adam")), batch, LayerwiseLearningRateController())
    with pytest.raises(ValueError, match="learning rate is 0 at every step"):
        fit(compiled(tiny_backbone, LayerwiseAdamW(0.0)), batch, LayerwiseLearningRateController())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (warmup_cosine(1e-3, 16), None),
        (1e-3, None),
        (warmup_cosine(1e-3, 8), "reaches 0 after 8 of 16 steps"),
        (warmup_cosine(1e-3, 100), "was made for more than these 16"),
        (keras.optimizers.schedules.ExponentialDecay(1e-3, 100, 0.9), None),
        (keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.0), "0 at each of the 16 steps"),
    ],
)
def test_schedule_that_does_not_fit_the_training_is_named(tiny_backbone, batch, schedule, message):
    check = LearningRateScheduleCheck()
    fit(compiled(tiny_backbone, LayerwiseAdamW(schedule)), batch, check, epochs=2)
    assert [message in warning for warning in check.warnings] == [True] if message else check.warnings == []


def test_epochs_shorter_than_a_look_are_no_collapse(tiny_backbone, batch):
    tokens, labels = batch
    controller = LayerwiseLearningRateController(**ANYTHING, every=5)
    model = compiled(tiny_backbone, LayerwiseAdamW(3e-3))
    # Three batches an epoch: the looks come after the second, the first, the third ... of an epoch.
    few = {name: value[:24] for name, value in tokens.items()}
    seen = []
    controller._collapse = lambda answers: seen.append(answers) or ""
    fit(model, (few, labels[:24]), controller, epochs=10)
    assert len(seen) == 6 and all(answers.entropy >= 0 and answers.spread > 0 for answers in seen[1:])


def test_balanced_training_on_rare_positives_keeps_its_good_states(tiny_backbone, batch):
    tokens, labels = batch
    rare = {0: 0.5 / (1 - labels.mean()), 1: 0.5 / labels.mean()}
    model = binary_classifier(tiny_backbone, dropout=0.0)
    statistics = LogitStatistics()
    model.compile(LayerwiseAdamW(3e-2), "binary_crossentropy", weighted_metrics=[statistics], run_eagerly=True)
    controller = LayerwiseLearningRateController(**ANYTHING, every=2)
    model.fit(tokens, labels, 8, epochs=4, class_weight=rare, shuffle=False, callbacks=[controller], verbose=0)
    assert controller.get_state()["saved"] > 0


@pytest.mark.parametrize("change", ["initial_epoch", "accumulation", "skipped", "stopped", "steps_per_execution"])
@pytest.mark.filterwarnings("error:The (learning rate|first epoch)")
def test_training_that_fits_its_schedule_is_not_warned_of(tiny_backbone, batch, change):
    optimizer = LayerwiseAdamW(
        warmup_cosine(1e-3, 8, 2), gradient_accumulation_steps=3 if change == "accumulation" else None
    )
    if change == "skipped":  # float16 that overflows in each step
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=3e38)
    check = LearningRateScheduleCheck()
    callbacks = [check]
    model = compiled(tiny_backbone, optimizer, metrics=False)
    if change == "stopped":
        callbacks.append(planted(model, 3, lambda: setattr(model, "stop_training", True)))
    if change == "steps_per_execution":  # of 3, into which 8 steps do not go
        model.compile(optimizer, "binary_crossentropy", steps_per_execution=3)
    if change == "initial_epoch":
        fit(model, batch, epochs=1)
        model.fit(*batch, 8, initial_epoch=1, epochs=2, callbacks=callbacks, verbose=0)
    else:
        fit(model, batch, *callbacks, epochs=2)
    assert check.warnings == []


@pytest.mark.filterwarnings("ignore")
def test_data_that_end_early_are_named(tiny_backbone, batch):
    tokens, labels = batch
    check = LearningRateScheduleCheck()
    model = compiled(tiny_backbone, LayerwiseAdamW(1e-3))
    model.fit(tf.data.Dataset.from_tensors((tokens, labels)), steps_per_epoch=3, callbacks=[check], verbose=0)
    assert ["1 batches where 3 were planned" in warning for warning in check.warnings] == [True]
