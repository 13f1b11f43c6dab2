import keras
import numpy as np
import pytest

from bertbin_tf.callbacks import LayerwiseLearningRateScheduler, SaturationMonitor, gradual_unfreezing
from bertbin_tf.models import binary_classifier
from bertbin_tf.optimizers import LayerwiseAdamW, layer_table, layerwise_decay


def compiled(backbone, optimizer=None, **kwargs):
    model = binary_classifier(backbone, **kwargs)
    model.compile(optimizer or LayerwiseAdamW(1e-2), "binary_crossentropy", run_eagerly=True)
    return model


@pytest.fixture
def batch(tiny_preprocessor, tiny_reviews):
    texts, labels = tiny_reviews
    return tiny_preprocessor(texts[:16]), np.array(labels[:16])


def fit(model, batch, *callbacks, epochs=1):
    return model.fit(*batch, batch_size=8, epochs=epochs, callbacks=list(callbacks), verbose=0).history


def test_saturation_is_the_counted_share_of_units(tiny_backbone, batch):
    model = compiled(tiny_backbone, LayerwiseAdamW(0.0))
    pooler = tiny_backbone.get_layer("pooled_dense")
    kernel, bias = pooler.get_weights()
    pooler.set_weights([kernel * 0, np.array([5.0, -5.0, 2.0, 0.0])])  # tanh: 1, -1, 0.96, 0
    history = fit(model, batch, SaturationMonitor(batch[0]))
    assert history["saturation/pooled_dense"] == [0.5]
    history = fit(model, batch, SaturationMonitor(batch[0], threshold=0.9))
    assert history["saturation/pooled_dense"] == [0.75]


def test_saturation_watches_layers_in_and_above_the_backbone(tiny_backbone, batch):
    model = compiled(tiny_backbone, hidden_dim=3)
    history = fit(model, batch, SaturationMonitor(batch[0], layers=("transformer_layer_0", "hidden", "probability")))
    assert {"saturation/transformer_layer_0", "saturation/hidden", "saturation/probability"} <= set(history)
    assert history["saturation/probability"] == [0.0]


def test_unknown_layer_is_refused_before_the_first_step(tiny_backbone, batch):
    model = compiled(tiny_backbone)
    with pytest.raises(ValueError, match="Unknown layer 'pooler'.*pooled_dense"):
        fit(model, batch, SaturationMonitor(batch[0], layers=["pooler"]))
    with pytest.raises(ValueError, match="threshold=1"):
        SaturationMonitor(batch[0], threshold=1)
    with pytest.raises(ValueError, match="dict of tokens, without labels. Received: a tuple"):
        SaturationMonitor(batch)
    assert SaturationMonitor(batch[0], layers="pooled_dense").layers == ("pooled_dense",)


def test_schedule_gets_the_initial_multipliers_in_every_epoch(tiny_backbone, batch):
    seen = []

    def schedule(epoch, multipliers):
        seen.append(multipliers["logit"])
        return {"logit": multipliers["logit"] / 2**epoch}

    model = compiled(tiny_backbone, LayerwiseAdamW(1e-2, {"logit": 4.0}))
    history = fit(model, batch, LayerwiseLearningRateScheduler(schedule), epochs=3)
    assert seen == [4.0, 4.0, 4.0]
    np.testing.assert_allclose(history["learning_rate/logit"], [4e-2, 2e-2, 1e-2], rtol=1e-6)
    np.testing.assert_allclose(history["learning_rate/pooled_dense"], [1e-2] * 3, rtol=1e-6)


def test_schedule_that_returns_nothing_is_an_error(tiny_backbone, batch):
    with pytest.raises(ValueError, match="`schedule` must return a dict.*epoch 0: None"):
        fit(compiled(tiny_backbone), batch, LayerwiseLearningRateScheduler(lambda epoch, multipliers: None))


def test_gradual_unfreezing_moves_one_more_block_each_epoch(tiny_backbone, batch):
    model = binary_classifier(tiny_backbone)
    model.compile(LayerwiseAdamW(1e-2, layerwise_decay(model, 0.5)), "binary_crossentropy", run_eagerly=True)
    watched = ["token_embedding", "transformer_layer_0", "transformer_layer_1", "pooled_dense"]

    def weights():
        return [tiny_backbone.get_layer(name).get_weights()[0].copy() for name in watched]

    moved, before = [], weights()

    def compare(epoch, logs):
        nonlocal before
        after = weights()
        moved.append([bool(np.any(a != b)) for a, b in zip(after, before, strict=True)])
        before = after

    fit(model, batch, gradual_unfreezing(model), keras.callbacks.LambdaCallback(on_epoch_end=compare), epochs=4)
    assert moved == [
        [False, False, False, True],
        [False, False, True, True],
        [False, True, True, True],
        [True, True, True, True],
    ]
    np.testing.assert_allclose(model.optimizer.multipliers["transformer_layer_0"], 0.25)


def test_scheduler_needs_our_optimizer(tiny_backbone, batch):
    model = compiled(tiny_backbone, keras.optimizers.Adam(name="adam"))
    with pytest.raises(ValueError, match="LayerwiseAdamW.*optimizer=adam"):
        fit(model, batch, LayerwiseLearningRateScheduler(lambda epoch, multipliers: {}))


def test_epochs_per_block_below_one_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match="epochs_per_block=0"):
        gradual_unfreezing(tiny_backbone, epochs_per_block=0)


def test_model_may_have_inputs_that_the_backbone_has_not(tiny_backbone, batch):
    tokens, labels = batch
    extra = keras.Input((3,), name="extra")
    features = keras.layers.Concatenate()([tiny_backbone(tiny_backbone.input)["pooled_output"], extra])
    model = keras.Model(tiny_backbone.input | {"extra": extra}, keras.layers.Dense(1, "sigmoid")(features))
    model.compile(LayerwiseAdamW(0.0), "binary_crossentropy", run_eagerly=True)
    both = tokens | {"extra": np.ones((len(labels), 3), "float32")}
    history = fit(model, (both, labels), SaturationMonitor(both, threshold=0.5))
    pooled = np.abs(tiny_backbone(tokens)["pooled_output"])
    assert history["saturation/pooled_dense"] == [pytest.approx((pooled > 0.5).mean())]
    inner = keras.Sequential([keras.layers.Dense(2, name="deep"), keras.layers.Dense(1, "sigmoid")], name="inner")
    nested = keras.Model(tiny_backbone.input, inner(tiny_backbone(tiny_backbone.input)["pooled_output"]))
    nested.compile(LayerwiseAdamW(0.0), "binary_crossentropy", run_eagerly=True)
    with pytest.raises(ValueError, match="a layer that the model's own inputs feed.*'inner'"):
        fit(nested, batch, SaturationMonitor(tokens, layers=["deep"]))


def test_optimizer_that_scales_the_loss_is_built_once(tiny_backbone, batch):
    optimizer = keras.optimizers.LossScaleOptimizer(LayerwiseAdamW(1e-3, {"logit": 20.0}), initial_scale=64.0)
    model = compiled(tiny_backbone, optimizer)
    assert {row.layer: row.multiplier for row in layer_table(model).rows}["logit"] == 20.0
    num_variables = len(optimizer.variables)
    for _ in range(2):
        fit(model, batch, LayerwiseLearningRateScheduler(lambda epoch, multipliers: multipliers))
    assert len(optimizer.variables) == num_variables
    assert float(optimizer.dynamic_scale) == 64.0
