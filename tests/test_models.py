import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
from conftest import VOCABULARY, build_tiny_backbone

from bertbin_tf.models import (
    POOLINGS,
    binary_classifier,
    cache_features,
    load_backbone,
    load_preprocessor,
    save_preprocessor,
)

TINY = dict(vocabulary_size=20, num_layers=2, num_heads=2, hidden_dim=4, intermediate_dim=8, max_sequence_length=16)


def tokens(rows=4, length=8, padded=3, segments=True):
    ids = np.random.default_rng(0).integers(1, 20, (rows, length))
    mask = np.arange(length)[None, :] < np.array([[length]] + [[length - padded]] * (rows - 1))
    batch = {"token_ids": (ids * mask).astype("int32"), "padding_mask": mask.astype("int32")}
    return batch | ({"segment_ids": np.zeros_like(batch["token_ids"])} if segments else {})


def entropy(p):
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


@pytest.mark.parametrize("base_rate", [0.02, 0.5, 0.7])
@pytest.mark.parametrize("hidden_dim", [None, 3])
def test_untouched_model_answers_the_base_rate(tiny_backbone, base_rate, hidden_dim):
    model = binary_classifier(tiny_backbone, base_rate=base_rate, hidden_dim=hidden_dim)
    np.testing.assert_allclose(model(tokens()), base_rate, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("backbone", ["Bert", "Roberta", "DistilBert", "DebertaV3"])
def test_every_backbone_builds_trains_saves_and_ignores_padding(backbone, pooling, tmp_path):
    keras.utils.set_random_seed(0)
    backbone = getattr(keras_nlp.models, f"{backbone}Backbone")(**TINY)
    model = binary_classifier(backbone, pooling=pooling, kernel_initializer="glorot_uniform")
    batch = tokens(segments="segment_ids" in backbone.input)
    model.compile("adam", "binary_crossentropy", run_eagerly=True)
    before = model.get_weights()
    model.train_on_batch(batch, np.array([0, 1, 0, 1]))
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert np.mean(changed) > 0.8
    answer = model(batch)
    longer = {name: np.pad(value, ((0, 0), (0, 4))) for name, value in batch.items()}
    np.testing.assert_allclose(model(longer), answer, atol=1e-6)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(batch), answer)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_fit_does_not_warn_of_weights_that_nothing_trains(tiny_backbone, pooling, recwarn):
    model = binary_classifier(tiny_backbone, pooling=pooling)
    model.compile("adam", "binary_crossentropy")
    model.fit(tokens(), np.array([0, 1, 0, 1]), verbose=0)
    assert not [str(warning.message) for warning in recwarn if "Gradients do not exist" in str(warning.message)]


def test_mean_pooling_is_the_mean_over_real_tokens(tiny_backbone):
    batch = tokens()
    model = binary_classifier(tiny_backbone, pooling="mean")
    features = keras.Model(model.input, model.get_layer("mean_pooling").output)(batch)
    sequence = keras.ops.convert_to_numpy(tiny_backbone(batch)["sequence_output"])
    by_hand = [row[mask == 1].mean(axis=0) for row, mask in zip(sequence, batch["padding_mask"], strict=True)]
    np.testing.assert_allclose(features, by_hand, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("execution", ["eager", "graph", "xla"])
def test_gradient_at_a_saturated_wrong_logit_is_one(execution, dtype):
    model = binary_classifier(build_tiny_backbone(dtype=dtype), dropout=0.0)
    bias = model.get_layer("logit").bias
    bias.assign([-20.0])
    loss = keras.losses.BinaryCrossentropy()
    batch = {name: tf.constant(value) for name, value in tokens().items()}

    def gradient():
        with tf.GradientTape() as tape:
            value = loss(tf.ones((4, 1)), model(batch, training=True))
        return tape.gradient(value, bias.value)

    if execution != "eager":
        gradient = tf.function(gradient, jit_compile=execution == "xla")
    np.testing.assert_allclose(gradient(), [-1.0], atol=1e-3)


def test_first_loss_of_fit_is_the_entropy_of_the_labels(tiny_backbone):
    labels = np.array([1, 0, 0, 0] * 8)
    model = binary_classifier(tiny_backbone, base_rate=0.25)
    model.compile(keras.optimizers.SGD(0.0), "binary_crossentropy", run_eagerly=True)
    loss = model.fit(tokens(rows=32), labels, verbose=0).history["loss"][0]
    np.testing.assert_allclose(loss, entropy(0.25), rtol=1e-5)


@pytest.mark.parametrize("hidden_dim", [None, 3])
def test_head_trained_on_cached_features_is_that_of_the_model(tiny_backbone, hidden_dim):
    ids = np.random.default_rng(0).integers(1, len(VOCABULARY), (24, 6)).astype("int32")
    tokens, labels = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": ids * 0 + 1}, (ids[:, 1] > 9) * 1
    model = binary_classifier(tiny_backbone, hidden_dim=hidden_dim)
    encoder = tiny_backbone.get_weights()
    head, features, found = cache_features(model, tf.data.Dataset.from_tensor_slices((tokens, labels)).batch(7))
    np.testing.assert_array_equal(found, labels)
    assert features.dtype == "float32" and len(features) == 24
    head.compile(keras.optimizers.Adam(0.1), "binary_crossentropy")
    losses = head.fit(features, labels, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    answers = model.predict(tokens, verbose=0)
    assert answers.std() > 1e-3  # the untouched model gives all texts one
    np.testing.assert_allclose(head.predict(features, verbose=0), answers, atol=1e-6)
    for now, before in zip(tiny_backbone.get_weights(), encoder, strict=True):
        np.testing.assert_array_equal(now, before)


def test_backbone_without_the_wanted_output_is_an_error(tiny_backbone):
    pooled_only = keras.Model(tiny_backbone.input, {"pooled_output": tiny_backbone.output["pooled_output"]})
    assert binary_classifier(pooled_only)(tokens()).shape == (4, 1)
    with pytest.raises(ValueError, match="pooling='mean' needs.*pooled_output"):
        binary_classifier(pooled_only, pooling="mean")
    with pytest.raises(ValueError, match="pooling='max'"):
        binary_classifier(tiny_backbone, pooling="max")
    with pytest.raises(ValueError, match="`backbone` must be a `keras.Model`.*load_backbone.*'minilm'"):
        binary_classifier("minilm")
    with pytest.raises(ValueError, match="probability=0"):
        binary_classifier(tiny_backbone, base_rate=0)


def test_saved_preprocessor_loads_with_its_vocabulary_and_accents(tiny_preprocessor, tiny_backbone, tmp_path):
    save_preprocessor(tiny_preprocessor, tiny_backbone, tmp_path / "preprocessor")
    loaded = load_preprocessor(str(tmp_path / "preprocessor"), sequence_length=8)
    assert loaded.tokenizer.get_vocabulary() == VOCABULARY
    assert loaded.tokenizer.strip_accents
    np.testing.assert_array_equal(loaded(["The MÓVIE"])["token_ids"][0][:4], [2, 6, 8, 3])


@pytest.mark.parametrize("load", [load_backbone, load_preprocessor])
def test_unknown_preset_says_what_exists(load):
    with pytest.raises(ValueError, match="Could not load the preset 'no_such_preset'.*minilm"):
        load("no_such_preset")
    with pytest.raises(ValueError, match="sequence_length=2"):
        load_preprocessor("minilm", sequence_length=2)


@pytest.mark.checkpoint
def test_first_answers_of_the_real_model_are_the_base_rate():
    preprocessor = load_preprocessor("minilm", sequence_length=32)
    batch = preprocessor(["A masterpiece.", "Dull, dull, dull.", "naïve café"])
    assert preprocessor.tokenizer.token_to_id("[UNK]") not in np.array(batch["token_ids"])
    for base_rate in (0.08, 0.5):
        model = binary_classifier(load_backbone("minilm"), base_rate=base_rate)
        probability = keras.ops.convert_to_numpy(model(batch))
        assert abs(probability.mean() / base_rate - 1) < 0.02
        loss = keras.losses.binary_crossentropy([base_rate], [probability.mean()])
        assert abs(float(loss) / entropy(base_rate) - 1) < 0.02


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooler_that_another_pooling_froze_is_told_of(tiny_backbone, pooling, recwarn):
    binary_classifier(tiny_backbone, pooling=pooling)
    assert not recwarn
    with pytest.warns(UserWarning, match="pooler of this backbone is frozen"):
        binary_classifier(tiny_backbone)
    tiny_backbone.get_layer("pooled_dense").trainable = True
    binary_classifier(tiny_backbone)
    tiny_backbone.trainable = False  # all of it, as one says who means it
    binary_classifier(tiny_backbone)
    assert not recwarn.list


def test_mean_over_tokens_needs_a_mask():
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    backbone = keras.Model({"token_ids": ids}, {"sequence_output": keras.layers.Embedding(20, 4)(ids)})
    with pytest.raises(ValueError, match="needs a backbone with an input 'padding_mask'"):
        binary_classifier(backbone, pooling="mean")
