from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import build_tiny_backbone

from bertbin_tf.models import binary_classifier
from bertbin_tf.optimizers import (
    LayerwiseAdamW,
    distance_from_head,
    few_steps_factor,
    head_layers,
    highest_rate,
    keeping_schedule,
    layer_table,
    layerwise_decay,
    schedule_of,
    warmup_cosine,
)


def two_layers(optimizer, **kwargs):
    """Two dense layers with fixed weights, compiled."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, "tanh", name="body"), keras.layers.Dense(1, "sigmoid", name="head")]
    )
    model.compile(optimizer, "binary_crossentropy", **({"run_eagerly": True} | kwargs))
    return model


def data(rows=32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 3)).astype("float32"), rng.integers(0, 2, (rows, 1)).astype("float32")


# Of these, 1 - beta is exact in float32, in which TensorFlow's kernel takes it; stock Keras has it in float64.
BETAS = {"beta_1": 0.875, "beta_2": 1 - 2**-7}
LAST_BITS = 2e-7  # of weights near 1, after 20 steps: stock Keras decays before Adam's step
ours_as_stock = partial(LayerwiseAdamW, weight_decay=0.1, **BETAS)


def stock(rate, **kwargs):
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.1, epsilon=1e-10, **(BETAS | kwargs))
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def train(model, steps=20):
    for _ in range(steps):
        model.train_on_batch(*data())
    return [weight.copy() for weight in model.get_weights()]


def distance(weights, others):
    return max(np.abs(a - b).max() for a, b in zip(weights, others, strict=True))


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"global_clipnorm": 0.01},
        {"clipnorm": 0.01},
        {"clipvalue": 0.01},
        {"use_ema": True},
        {"gradient_accumulation_steps": 2},
        {"amsgrad": True},
    ],
    ids=str,
)
def test_equals_stock_adamw_at_multipliers_of_1(kwargs):
    ours = train(two_layers(ours_as_stock(1e-2, **kwargs)))
    assert distance(ours, train(two_layers(stock(1e-2, **kwargs)))) <= LAST_BITS


def test_differs_from_stock_adamw_by_the_rounding_of_the_default_betas():
    betas = {"beta_1": 0.9, "beta_2": 0.999}
    ours = train(two_layers(ours_as_stock(1e-2, **betas)))
    assert distance(ours, train(two_layers(stock(1e-2, **betas)))) <= 1e-5 * 20 * 1e-2  # of 20 steps of 1e-2


@pytest.mark.parametrize("compile_arguments", [{"jit_compile": True}, {"jit_compile": False}], ids=str)
def test_equals_stock_adamw_when_compiled(compile_arguments):
    compile_arguments = {"run_eagerly": False} | compile_arguments
    ours = train(two_layers(ours_as_stock(1e-2), **compile_arguments))
    assert distance(ours, train(two_layers(stock(1e-2), **compile_arguments))) <= LAST_BITS


@pytest.mark.parametrize(
    ("steps_per_execution", "policy", "kwargs"),
    [(4, "float32", {}), (1, "mixed_bfloat16", {}), (4, "float32", {"gradient_accumulation_steps": 2})],
    ids=str,
)
def test_equals_stock_adamw_in_fit(steps_per_execution, policy, kwargs):
    def fit(optimizer):
        keras.config.set_dtype_policy(policy)
        try:
            model = two_layers(optimizer, run_eagerly=False, steps_per_execution=steps_per_execution)
        finally:
            keras.config.set_dtype_policy("float32")
        model.fit(*data(), batch_size=4, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    ours, theirs = (fit(optimizer(1e-2, **kwargs)) for optimizer in (ours_as_stock, stock))
    assert distance(ours, theirs) <= LAST_BITS
    assert distance(ours, two_layers("sgd").get_weights()) > 1e-2


@pytest.mark.parametrize("multiplier", [0.1, 0.5, 3.0])
def test_multiplier_equals_stock_adamw_at_so_many_times_the_rate(multiplier):
    # Only the body is scaled, so one step, in which the gradients are still the same: decay included.
    ours = train(two_layers(ours_as_stock(1e-2, {"body": multiplier})), steps=1)
    scaled = train(two_layers(stock(1e-2 * multiplier)), steps=1)
    plain = train(two_layers(stock(1e-2)), steps=1)
    assert distance(ours[:2], scaled[:2]) <= LAST_BITS
    assert distance(ours[2:], plain[2:]) <= LAST_BITS


def test_all_multipliers_together_equal_the_rate_over_20_steps():
    ours = train(two_layers(ours_as_stock(1e-2, {"body": 0.3, "head": 0.3})))
    assert distance(ours, train(two_layers(stock(1e-2 * 0.3)))) <= LAST_BITS


def test_learning_rate_schedule_is_scaled_too():
    def schedule():
        return keras.optimizers.schedules.PolynomialDecay(1e-2, 20)

    ours = train(two_layers(ours_as_stock(schedule())))
    assert distance(ours, train(two_layers(stock(schedule())))) <= LAST_BITS


def test_frozen_layer_neither_moves_nor_decays_and_keeps_its_moments_current():
    model = two_layers(LayerwiseAdamW(1e-2, {"body": 0.0}, weight_decay=0.5))
    before = model.get_weights()
    after = train(model)
    assert distance(after[:2], before[:2]) == 0
    assert distance(after[2:], before[2:]) > 0
    moments = [v.numpy() for v in model.optimizer.variables if "body_kernel_momentum" in v.path]
    assert np.abs(moments[0]).max() > 0


def test_initial_multipliers_of_a_part_are_those_of_its_layer(tiny_backbone):
    optimizer = LayerwiseAdamW(
        1e-3, {"transformer_layer_0": 0.0, "transformer_layer_1": 0.0}, max_relative_step={"self_attention_layer": 1e-2}
    )
    optimizer.build(tiny_backbone.trainable_variables)
    assert optimizer.initial_multipliers["self_attention_layer"] == 0
    assert optimizer.initial_multipliers == optimizer.multipliers


def test_negative_weight_decay_is_refused():
    with pytest.raises(ValueError, match="weight_decay=-1.0"):
        LayerwiseAdamW(weight_decay=-1.0)


def test_highest_rate_is_looked_for_far_ahead_where_the_end_is_not_known():
    optimizer = LayerwiseAdamW(warmup_cosine(1e-3, 100_000))
    assert highest_rate(optimizer, None) == pytest.approx(1e-3, rel=0.01)
    assert highest_rate(optimizer, 1000) == pytest.approx(1e-4, rel=0.01)


def test_schedule_goes_on_where_an_earlier_state_is_put_back():
    model = two_layers(LayerwiseAdamW(keras.optimizers.schedules.PolynomialDecay(1e-2, 10, 0.0)))
    for _ in range(3):
        model.train_on_batch(*data())
    with keeping_schedule(model.optimizer):
        model.optimizer.iterations.assign(0)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.7e-2)
    model.train_on_batch(*data())
    assert int(model.optimizer.iterations) == 1
    assert float(model.optimizer.learning_rate) == pytest.approx(0.6e-2)


def test_initial_multipliers_are_in_force_when_fit_builds_the_optimizer():
    model = two_layers(LayerwiseAdamW(1e-2, {"body": 0.0}), run_eagerly=False)
    before = model.get_weights()
    model.fit(*data(), verbose=0)
    assert model.optimizer.multipliers == {"body": 0.0, "head": 1.0}
    assert distance(model.get_weights()[:2], before[:2]) == 0


def test_biases_and_layer_norms_are_not_decayed():
    model = keras.Sequential([keras.Input((3,)), keras.layers.LayerNormalization(), keras.layers.Dense(2)])
    model.set_weights([np.ones_like(weight) for weight in model.get_weights()])
    optimizer = LayerwiseAdamW(0.1, weight_decay=0.5)
    optimizer.apply([tf.zeros_like(v) for v in model.trainable_variables], model.trainable_variables)
    gamma, beta, kernel, bias = model.get_weights()
    assert np.all(gamma == 1) and np.all(beta == 1) and np.all(bias == 1)
    np.testing.assert_allclose(kernel, 1 - 0.1 * 0.5)


def test_repeated_token_steps_as_far_as_its_dense_gradient():
    tokens = tf.constant([[1, 1, 1, 2]])

    def step(optimizer):
        embedding = keras.layers.Embedding(3, 2, embeddings_initializer="ones")
        embedding.build()
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(embedding(tokens))
        gradient = tape.gradient(loss, embedding.trainable_variables)
        assert isinstance(gradient[0], tf.IndexedSlices)
        optimizer.apply(gradient, embedding.trainable_variables)
        return 1 - embedding.get_weights()[0]

    # Adam's first step is the rate, whatever the size of the gradient. Stock Adam takes sqrt(3) rates for token 1.
    np.testing.assert_allclose(step(LayerwiseAdamW(0.01, weight_decay=0.0))[1:], 0.01, rtol=1e-4)
    assert step(keras.optimizers.AdamW(0.01, weight_decay=0.0))[1].max() > 0.015


def test_small_gradients_move_the_weights_and_rounding_errors_do_not():
    def step(optimizer, size):
        weights = keras.Variable(np.zeros(3))
        optimizer.apply([tf.fill([3], size)], [weights])
        return -weights.numpy()

    ours, stock_adamw = (partial(optimizer, 0.01) for optimizer in (LayerwiseAdamW, keras.optimizers.AdamW))
    # In the first step epsilon is added to the root of a thousandth of the squared gradient, here to 3e-10.
    np.testing.assert_allclose(step(ours(), 1e-8), 0.01 / (1 + 1e-10 / (1e-3**0.5 * 1e-8)), rtol=1e-3)
    assert step(stock_adamw(), 1e-8).max() < 0.01 * 0.01
    assert step(ours(), 1e-13).max() < 0.01 * 0.01


def test_set_multiplier_acts_without_retracing():
    model = two_layers(LayerwiseAdamW(1e-2), run_eagerly=False)
    traces = []
    original = model.compute_loss
    model.compute_loss = lambda *args, **kwargs: (traces.append(1), original(*args, **kwargs))[1]
    train(model, steps=2)
    traced = len(traces)
    model.optimizer.set_multiplier("body", 0.0)
    before = model.get_weights()
    after = train(model, steps=3)
    assert distance(after[:2], before[:2]) == 0
    assert distance(after[2:], before[2:]) > 0
    assert len(traces) == traced


def test_multipliers_survive_save_and_load(tmp_path):
    model = two_layers(LayerwiseAdamW(1e-2, {"body": 0.5}, weight_decay=0.1))
    train(model, steps=3)
    model.optimizer.set_multiplier("head", 0.25)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.multipliers == {"body": 0.5, "head": 0.25}
    loaded.run_eagerly = True
    assert distance(train(model), train(loaded)) == 0


def test_config_round_trips():
    optimizer = LayerwiseAdamW(1e-2, {"body": 0.5}, weight_decay=0.03, global_clipnorm=1.0)
    clone = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert clone.get_config() == optimizer.get_config()


def test_inner_layer_can_be_named(tiny_backbone):
    optimizer = LayerwiseAdamW(multipliers={"self_attention_layer": 0.5})
    optimizer.build(tiny_backbone.trainable_variables)
    assert optimizer.multipliers["self_attention_layer"] == 0.5
    assert optimizer.multipliers["transformer_layer_0"] == 1.0


@pytest.mark.parametrize("run", [lambda step: step(), lambda step: tf.function(step)()], ids=["eager", "graph"])
def test_steps_plain_variables_of_a_loop_of_ones_own(run):
    body, head = tf.Variable([1.0, 2.0], name="body/kernel"), tf.Variable([[3.0]], name="head/kernel")
    optimizer = LayerwiseAdamW(0.1, {"head": 0.0}, weight_decay=0.0)
    run(lambda: optimizer.apply_gradients([(tf.ones(2), body), (tf.ones((1, 1)), head)]))
    np.testing.assert_allclose(body, [0.9, 1.9], rtol=1e-6)  # Adam's first step is the rate
    np.testing.assert_array_equal(head, [[3.0]])
    assert optimizer.multipliers == {"body": 1.0, "head": 0.0}
    assert optimizer.weight_rms()["head"] == 3.0


def test_mixed_float16_wraps_it(tiny_backbone):
    optimizer = keras.optimizers.LossScaleOptimizer(LayerwiseAdamW(1e-2, {"body": 0.0}))
    model = two_layers(optimizer)
    before = model.get_weights()
    assert distance(train(model, steps=3)[:2], before[:2]) == 0


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_bad_multiplier_is_refused(value):
    with pytest.raises(ValueError, match=f"body={value}"):
        LayerwiseAdamW(multipliers={"body": value})


def test_unknown_layer_error_lists_the_layers():
    with pytest.raises(ValueError, match="Unknown layer 'pooler'.*layers body, head"):
        two_layers(LayerwiseAdamW(multipliers={"pooler": 0.5})).train_on_batch(*data())
    model = two_layers(LayerwiseAdamW())
    with pytest.raises(ValueError, match="has no layers yet"):
        model.optimizer.set_multiplier("body", 0.5)
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="Unknown layer 'pooler'.*layers body, head"):
        model.optimizer.set_multiplier("pooler", 0.5)


def test_distance_counts_blocks_from_the_head(tiny_backbone):
    assert distance_from_head(tiny_backbone) == {
        "token_embedding": 3,
        "position_embedding": 3,
        "segment_embedding": 3,
        "embeddings_layer_norm": 3,
        "transformer_layer_0": 2,
        "transformer_layer_1": 1,
        "pooled_dense": 0,
    }


def test_layerwise_decay_fits_the_optimizer_of_the_whole_model(tiny_backbone):
    head = keras.layers.Dense(1, "sigmoid", name="logit")(tiny_backbone(tiny_backbone.input)["pooled_output"])
    model = keras.Model(tiny_backbone.input, head)
    multipliers = layerwise_decay(model, 0.5)
    assert multipliers["logit"] == multipliers["pooled_dense"] == 1
    assert multipliers["transformer_layer_1"] == 0.5
    assert multipliers["token_embedding"] == 0.125
    optimizer = LayerwiseAdamW(2e-5, multipliers)
    optimizer.build(model.trainable_variables)
    assert optimizer.multipliers == multipliers


def test_layerwise_decay_leaves_out_a_frozen_layer():
    backbone = build_tiny_backbone()
    backbone.get_layer("token_embedding").trainable = False
    assert "token_embedding" not in layerwise_decay(backbone)


@pytest.mark.parametrize("rate", [0, -1, 1.1])
def test_decay_rate_out_of_range_is_refused(tiny_backbone, rate):
    with pytest.raises(ValueError, match=f"rate={rate}"):
        layerwise_decay(tiny_backbone, rate)


def test_model_without_blocks_is_an_error_that_lists_its_layers():
    with pytest.raises(ValueError, match="body, head"):
        layerwise_decay(two_layers("sgd"))


def stepped(gradients, weights, compiled=lambda apply: apply, **kwargs):
    """Applies one gradient after another to one dense kernel and returns its values after each."""
    layer = keras.layers.Dense(1, use_bias=False, name="layer")
    layer.build((None, len(weights)))
    layer.set_weights([np.array(weights, "float32")[:, None]])
    optimizer = LayerwiseAdamW(weight_decay=0.0, measure_every=1, **kwargs)
    optimizer.build(layer.trainable_variables)
    apply = compiled(lambda gradient: optimizer.apply([gradient[:, None]], layer.trainable_variables))
    seen = []
    for gradient in gradients:
        apply(tf.constant(gradient, tf.float32))
        seen.append(layer.get_weights()[0][:, 0])
    return seen, optimizer


def test_bound_by_hand_over_three_steps():
    # Equal gradients: Adam's direction is the sign in every step, so each weight moves by the rate, which the bound
    # sets to a hundredth of the RMS of (3, 4), of what is left of it after one step, and of that after two.
    seen, _ = stepped([[1.0, 1.0]] * 3, [3.0, 4.0], learning_rate=1.0, max_relative_step=0.01)
    weights = np.array([3.0, 4.0])
    for after in seen:
        weights = weights - 0.01 * np.sqrt(np.mean(weights**2))
        np.testing.assert_allclose(after, weights, rtol=1e-5)


@pytest.mark.parametrize("kwargs", [{}, {"gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize(
    "compiled",
    [lambda apply: apply, tf.function, partial(tf.function, jit_compile=True)],
    ids=["eagerly", "in_a_graph", "by_xla"],
)
def test_bound_holds_however_the_gradients_jump(compiled, kwargs):
    gradients = np.random.default_rng(0).normal(size=(50, 4)) ** 9 * 1e4
    gradients = np.concatenate([gradients, np.full((16, 4), 1e9)])  # Adam's direction becomes larger than 1
    weights = [1.0, -2.0, 0.5, 0.1]
    seen, optimizer = stepped(gradients, weights, compiled, learning_rate=0.3, max_relative_step=0.02, **kwargs)
    assert not np.allclose(seen[-1], weights, rtol=0.02)
    before = np.array(weights)
    for after in seen:
        assert np.linalg.norm(after - before) <= 0.02 * np.linalg.norm(before) * (1 + 1e-5)
        before = after
    assert optimizer.statistics["layer"].learning_rate < 0.3


def test_weights_near_zero_are_measured_against_new_ones():
    seen, _ = stepped([[1.0, -1.0]], [0.0, 0.0], learning_rate=1.0, max_relative_step=0.1)
    np.testing.assert_allclose(seen[0], [-0.002, 0.002], rtol=1e-5)  # a tenth of 0.02


def test_bound_that_does_not_bind_changes_no_bit():
    weights = [
        train(two_layers(LayerwiseAdamW(1e-3, weight_decay=0.1, max_relative_step=bound)))
        for bound in ({"body": 0.5}, None)
    ]
    assert distance(*weights) == 0


@pytest.mark.parametrize(
    ("kwargs", "steps"),
    [({}, 1), ({"gradient_accumulation_steps": 2}, 2), ({"use_ema": True}, 1), ({"clipnorm": 0.01}, 1)],
    ids=str,
)
def test_measured_norms_are_those_of_numpy(kwargs, steps):
    model = two_layers(LayerwiseAdamW(1e-2, {"head": 0.5}, weight_decay=0.0, **kwargs))
    before = model.get_weights()
    after = train(model, steps=steps)
    body, head = model.optimizer.statistics.values()

    def norm(arrays):
        return np.sqrt(sum(np.sum(array.astype("float64") ** 2) for array in arrays))

    np.testing.assert_allclose(body.weight_norm, norm(before[:2]), rtol=1e-5)
    np.testing.assert_allclose(
        body.update_norm, norm(a - b for a, b in zip(after[:2], before[:2], strict=True)), rtol=1e-3
    )
    np.testing.assert_allclose(
        head.update_norm, norm(a - b for a, b in zip(after[2:], before[2:], strict=True)), rtol=1e-3
    )
    np.testing.assert_allclose([body.learning_rate, head.learning_rate], [1e-2, 5e-3], rtol=1e-6)
    assert (body.size, head.size) == (16, 5)
    assert 0 < body.gradient_norm <= (0.011 * np.sqrt(2) if kwargs.get("clipnorm") else 10)
    np.testing.assert_allclose(body.relative_step, body.update_norm / body.weight_norm, rtol=1e-5)


@pytest.mark.parametrize("compile_arguments", [{"jit_compile": True}, {"steps_per_execution": 4}], ids=str)
def test_measures_every_so_many_steps_when_compiled(compile_arguments):
    model = two_layers(
        LayerwiseAdamW(1e-2, measure_every=5, max_relative_step=0.01), run_eagerly=False, **compile_arguments
    )
    model.fit(*data(64), batch_size=8, shuffle=False, verbose=0)  # 8 steps: 0 and 5 are measured
    eager = two_layers(LayerwiseAdamW(1e-2, measure_every=1, max_relative_step=0.01))
    eager.fit(*data(64)[:1], data(64)[1], batch_size=8, epochs=1, steps_per_epoch=6, shuffle=False, verbose=0)
    for ours, theirs in zip(model.optimizer.statistics.values(), eager.optimizer.statistics.values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_relative_step": 0}, "max_relative_step.*all=0"),
        ({"max_relative_step": {"body": float("nan")}}, "body=nan"),
        ({"measure_every": 0}, "measure_every=0"),
        ({"measure_every": 2.0}, "measure_every=2.0"),
        ({"measure_every": True}, "measure_every=True"),
    ],
)
def test_bad_bound_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LayerwiseAdamW(**arguments)


def test_bound_of_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="Unknown layer 'pooler'.*layers body, head"):
        two_layers(LayerwiseAdamW(max_relative_step={"pooler": 0.5})).train_on_batch(*data())


def test_head_is_what_pre_training_did_not_fill(tiny_backbone):
    flat = keras.Model(tiny_backbone.input, keras.layers.Dense(1, name="out")(tiny_backbone.output["pooled_output"]))
    model = binary_classifier(tiny_backbone, hidden_dim=3)
    # A pooler as it was made, which nothing has trained, and one that has grown.
    assert head_layers(model) == ["pooled_dense", "hidden", "logit"]
    assert head_layers(flat) == ["pooled_dense", "out"]
    pooler = tiny_backbone.get_layer("pooled_dense")
    pooler.kernel.assign(2 * pooler.kernel)
    assert head_layers(model) == ["hidden", "logit"]
    assert head_layers(flat) == ["out"]


def test_few_steps_factor_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="num_steps=0"):
        few_steps_factor(0)


def test_schedule_takes_its_length_from_the_data():
    batches = tf.data.Dataset.range(40).batch(4)
    schedule = warmup_cosine(1e-3, batches, epochs=5)
    rates = [float(schedule(step)) for step in (0, 5, 50)]
    np.testing.assert_allclose(rates, [0, 1e-3, 0], atol=1e-9)
    np.testing.assert_allclose(float(warmup_cosine(1e-3, 10, warmup_fraction=0)(0)), 1e-3)
    assert highest_rate(keras.optimizers.Adam(schedule), 50) == pytest.approx(1e-3, rel=1e-3)
    assert highest_rate(keras.optimizers.Adam(0.25), 50) == 0.25
    assert schedule_of(keras.optimizers.Adam(schedule)) is schedule
    assert schedule_of(keras.optimizers.Adam(0.25)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1e-3, tf.data.Dataset.range(9).filter(lambda i: i > 1)), "assert_cardinality.*unknown"),
        ((1e-3, tf.data.Dataset.range(9).repeat()), "infinite"),
        ((1e-3, 0), "batches=0"),
        ((1e-3, 5, 0), "epochs=0"),
        ((0.0, 5), "learning_rate=0"),
    ],
)
def test_schedule_without_an_end_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine(*arguments)


def test_layer_table_has_all_weights_and_the_rates_in_force():
    backbone = build_tiny_backbone()
    backbone.get_layer("transformer_layer_0").trainable = False
    model = binary_classifier(backbone)
    model.compile(LayerwiseAdamW(1e-3, {"logit": 20.0}), "binary_crossentropy", run_eagerly=True)
    assert {row.relative_step for row in layer_table(model).rows} == {None}
    tokens = {name: np.ones((4, 8), "int32") for name in ("token_ids", "segment_ids", "padding_mask")}
    model.train_on_batch(tokens, np.ones((4, 1)))
    rows = {row.layer: row for row in layer_table(model).rows}
    assert sum(row.size for row in rows.values()) == model.count_params()
    assert (rows["logit"].multiplier, rows["logit"].learning_rate) == (20.0, pytest.approx(0.02))
    assert rows["logit"].relative_step == model.optimizer.statistics["logit"].relative_step > 0
    assert rows["transformer_layer_0"][2:] == (0.0, 0.0, None)
    assert str(layer_table(model)).splitlines()[0].split()[:2] == ["layer", "weights"]


def test_layer_table_of_another_optimizer_has_its_one_rate():
    model = two_layers(keras.optimizers.SGD(0.5))
    assert [row[:4] for row in layer_table(model).rows] == [("body", 16, 1.0, 0.5), ("head", 5, 1.0, 0.5)]
    with pytest.raises(ValueError, match="must be compiled"):
        layer_table(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))


def test_layer_table_escapes_names_in_html():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="<b>")])
    model.compile("sgd", "mse")
    assert "&lt;b&gt;" in layer_table(model)._repr_html_() and "<b>" not in layer_table(model)._repr_html_()


def test_part_of_a_layer_has_what_was_said_of_the_layer(tiny_backbone):
    model = binary_classifier(tiny_backbone)
    part, block = "self_attention_layer", "transformer_layer_0"
    with pytest.raises(ValueError, match=f"'{part}' is a part of several layers.*'{block}': 0.0"):
        LayerwiseAdamW(1e-3, {block: 0.0}, max_relative_step={part: 1e-3}).build(model.trainable_variables)
    frozen = {"transformer_layer_0": 0.0, "transformer_layer_1": 0.0}
    optimizer = LayerwiseAdamW(1e-3, frozen, max_relative_step={part: 1e-3})
    optimizer.build(model.trainable_variables)
    assert optimizer.multipliers[part] == 0.0 and optimizer.multipliers["logit"] == 1.0


def test_weights_are_decayed_by_their_own_name_and_not_by_that_of_a_layer():
    layers = [keras.layers.Dense(4, name="debias"), keras.layers.LayerNormalization()]
    model = keras.Sequential([keras.Input((3,)), *layers])
    optimizer = LayerwiseAdamW(1e-3)
    optimizer.exclude_from_weight_decay(var_names=["nothing"])
    optimizer.build(model.trainable_variables)
    decayed = [variable for variable in model.trainable_variables if optimizer._use_weight_decay(variable)]
    assert decayed == [layers[0].kernel]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_weights_of_other_dtypes_train(dtype):
    before = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        model = two_layers(LayerwiseAdamW(1e-2, max_relative_step=0.1))
        start = model.get_weights()
        train(model, steps=2)
    finally:
        keras.config.set_floatx(before)
    assert all(np.any(old != new) for old, new in zip(start, model.get_weights(), strict=True))


class HeadFirst(keras.Model):
    """As many write it: the head's attribute comes before the encoder's."""

    def __init__(self, encoder):
        super().__init__(name="net")
        self.dense = keras.layers.Dense(1, "sigmoid")
        self.encoder = encoder

    def call(self, tokens):
        return self.dense(self.encoder(tokens)["pooled_output"])


@pytest.mark.parametrize("kind", ["nested", "subclassed"])
def test_head_of_any_make_is_found_and_named_as_the_optimizer_does(tiny_backbone, kind):
    if kind == "nested":
        head = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(1, "sigmoid")], name="my_head")
        model = keras.Model(tiny_backbone.input, head(tiny_backbone(tiny_backbone.input)["pooled_output"]))
    else:
        model = HeadFirst(tiny_backbone)
        model({name: np.ones((2, 8), "int32") for name in ("token_ids", "segment_ids", "padding_mask")})
    optimizer = LayerwiseAdamW(1e-3, layerwise_decay(model, 0.5))
    optimizer.build(model.trainable_variables)
    (head,) = set(head_layers(model)) - {"pooled_dense"}
    assert head == ("my_head" if kind == "nested" else "net")
    assert optimizer.multipliers[head] == 1.0 and optimizer.multipliers["token_embedding"] == 0.125
    assert set(optimizer.multipliers) == set(distance_from_head(model))


class Block(keras.layers.Layer):
    """A layer of layers, as a transformer block is."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.feedforward = keras.layers.Dense(4)

    def build(self, shape):
        self.feedforward.build(shape)

    def call(self, inputs):
        return self.feedforward(inputs)


def test_blocks_are_counted_in_their_order(tiny_backbone):
    inputs = keras.Input((4,))
    hidden = Block(name="group_1_inner_layer_0")(Block(name="group_0_inner_layer_0")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1, name="out")(hidden))
    assert distance_from_head(model) == {"group_0_inner_layer_0": 2, "group_1_inner_layer_0": 1, "out": 0}


def test_dense_layer_of_the_head_is_no_block_whatever_its_name(tiny_backbone):
    hidden = keras.layers.Dense(4, name="hidden_layer_1")(tiny_backbone.output["pooled_output"])
    model = keras.Model(tiny_backbone.input, keras.layers.Dense(1, name="out")(hidden))
    assert distance_from_head(model)["hidden_layer_1"] == 0
    assert distance_from_head(model)["transformer_layer_1"] == 1
    assert "hidden_layer_1" in head_layers(model)


def test_model_without_trainable_weights_has_no_layers():
    model = two_layers(LayerwiseAdamW(1e-3))
    model.trainable = False
    model.compile(LayerwiseAdamW(1e-3), "binary_crossentropy", run_eagerly=True)
    assert [row.multiplier for row in layer_table(model).rows] == [0.0, 0.0]


class Wrapped(keras.layers.Layer):
    """An encoder inside of a layer, as many write it."""

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder

    def call(self, tokens):
        return self.encoder(tokens)["pooled_output"]


def test_encoder_inside_of_a_layer_is_found(tiny_backbone):
    logit = keras.layers.Dense(1, name="logit")(Wrapped(tiny_backbone)(tiny_backbone.input))
    model = keras.Model(tiny_backbone.input, logit)
    assert head_layers(model) == ["pooled_dense", "logit"]
    assert distance_from_head(model)["transformer_layer_0"] == 2 and distance_from_head(model)["token_embedding"] == 3


def test_layer_outside_of_the_encoder_is_no_block_whatever_its_name(tiny_backbone):
    hidden = keras.layers.Dense(4, name="hidden_layer_1")(tiny_backbone(tiny_backbone.input)["pooled_output"])
    model = keras.Model(tiny_backbone.input, keras.layers.Dense(1, name="logit")(hidden))
    assert head_layers(model) == ["pooled_dense", "hidden_layer_1", "logit"]
    assert distance_from_head(model)["transformer_layer_1"] == 1


class WithTemperature(keras.Model):
    def __init__(self):
        super().__init__(name="my_model")
        self.embedding = keras.layers.Embedding(20, 4, name="token_embedding")
        self.block = Block(name="transformer_layer_0")
        self.logit = keras.layers.Dense(1, name="logit")
        self.temperature = self.add_weight(shape=(), initializer="ones", name="temperature")

    def call(self, ids):
        return self.logit(keras.ops.mean(self.block(self.embedding(ids)), axis=1)) * self.temperature


def test_weight_of_the_model_itself_is_a_layer_of_its_own():
    model = WithTemperature()
    model.compile(LayerwiseAdamW(1e-3), "mse")
    model.train_on_batch(np.ones((2, 3), "int32"), np.ones((2, 1)))
    assert list(model.optimizer.multipliers) == ["temperature", "token_embedding", "transformer_layer_0", "logit"]
    assert distance_from_head(model) == {"token_embedding": 2, "transformer_layer_0": 1, "logit": 0}


@pytest.mark.parametrize("kwargs", [{"amsgrad": True}, {"global_clipnorm": -1.0}])
def test_is_the_stock_optimizer_where_that_is_unusual(kwargs):
    models = [
        two_layers(LayerwiseAdamW(1e-2, **kwargs)),
        two_layers(keras.optimizers.AdamW(1e-2, epsilon=1e-10, weight_decay=0.01, **kwargs)),
    ]
    models[1].optimizer.exclude_from_weight_decay(var_names=["bias"])
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.compile(model.optimizer, "mse", jit_compile=True)
        for _ in range(3):
            model.train_on_batch(*data())
    for ours, stock in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-7)


def test_half_precision_weights_without_a_gradient_stay(tiny_backbone):
    optimizer, weights = LayerwiseAdamW(1e-3, weight_decay=0.0), keras.Variable(np.ones((2, 2)), dtype="float16")
    optimizer.apply([tf.constant([[1, 1], [0, 0]], tf.float16)], [weights])
    np.testing.assert_array_equal(weights.numpy()[1], [1, 1])


@pytest.mark.parametrize("epsilon", [0.0, -1.0])
def test_epsilon_must_be_positive(epsilon):
    with pytest.raises(ValueError, match="`epsilon` must be greater than 0.*Received"):
        LayerwiseAdamW(epsilon=epsilon)


def test_table_of_a_model_without_weights_is_an_error():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(LayerwiseAdamW(1e-2), "mse")
    with pytest.raises(ValueError, match="has no weights yet.*call it on a batch"):
        layer_table(model)
    model.fit(np.ones((4, 2)), np.ones(4), verbose=0)
