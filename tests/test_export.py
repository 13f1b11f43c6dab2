"""The exported model: text in, the Keras model's probability out, anywhere and under any file system's mood."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
from conftest import VOCABULARY, build_tiny_backbone

from bertbin_tf import data, evaluation
from bertbin_tf.export import Servable, export_saved_model, extras, saved_model, verify
from bertbin_tf.export.servable import REACHING_OUT, operations_of

ODD_TEXTS = {
    "empty": "",
    "blank": " \t\n",
    "one word": "superb",
    "10,000 words": "great film " * 5000,
    "one long word": "a" * 5000,
    "emoji": "good 😀👩‍👩‍👧 film 🇫🇷",
    "nul": "good\0bad film\0",
    "invalid utf-8": b"good \xff\xfe film \xc3",
    "right to left": "הסרט היה good \u202e film",
    "control characters": "good\x01\x07\x1b[31m\x7f film\u200b!",
    "accents": "góod fílm, très süperb",
    "upper case": "THE FILM WAS GOOD",
    "special tokens": "[CLS] good [SEP] [PAD] film [MASK]",
    "chinese": "这部电影 good",
}


def build_model(backbone, head="activation"):
    """`binary_classifier` in short, with weights large enough for every word to change the probability."""
    features = keras.layers.Dropout(0.5)(backbone(backbone.input)["pooled_output"])
    if head == "dense":
        outputs = keras.layers.Dense(1, "sigmoid", dtype="float32")(features)
    else:
        outputs = keras.layers.Activation("sigmoid", dtype="float32")(keras.layers.Dense(1, dtype="float32")(features))
    model = keras.Model(backbone.input, outputs)
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("kernel", "embeddings")):
            weight.assign(generator.normal(size=weight.shape))
    return model


def build_preprocessor(vocabulary=VOCABULARY, sequence_length=16):
    tokenizer = keras_nlp.tokenizers.BertTokenizer(list(vocabulary), lowercase=True, strip_accents=True)
    return keras_nlp.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=sequence_length)


def predict_with_keras(model, preprocessor, texts):
    encode = tf.function(lambda texts: data.encode(preprocessor, texts))
    return model(encode(tf.constant(texts, tf.string)), training=False).numpy()[:, 0]


def load_signature(folder, name="serving_default"):
    """The signature, with the loaded object that keeps its variables alive."""
    loaded = tf.saved_model.load(str(folder))
    return lambda **inputs: (loaded, loaded.signatures[name](**inputs))[1]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return build_model(build_tiny_backbone())


@pytest.fixture(scope="module")
def preprocessor():
    return build_preprocessor()


@pytest.fixture(scope="module")
def exported(model, preprocessor, tmp_path_factory):
    return export_saved_model(model, preprocessor, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def serve(exported):
    return load_signature(exported)


@pytest.fixture
def save(monkeypatch):
    """Stands in for all that is written into a version, where only its folder matters: one file, or what is given."""

    def stand_in(write):
        monkeypatch.setattr(saved_model, "_save", lambda module, folder, signatures: write(folder))

    for name in ("write_warmup", "verify"):
        monkeypatch.setattr(saved_model, name, lambda *arguments: None)
    monkeypatch.setattr(extras.Golden, "write", lambda golden, folder: None)
    stand_in(lambda folder: (folder / "saved_model.pb").write_text("saved"))
    return stand_in


def test_odd_texts_get_the_probability_of_the_keras_model(model, preprocessor, serve):
    texts = list(ODD_TEXTS.values())
    expected = predict_with_keras(model, preprocessor, texts)
    assert expected.std() > 0.05
    np.testing.assert_allclose(serve(text=tf.constant(texts))["probability"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_text_alone_gets_the_probability_it_gets_in_company(model, preprocessor, serve, name):
    together = predict_with_keras(model, preprocessor, list(ODD_TEXTS.values()))
    alone = serve(text=tf.constant([ODD_TEXTS[name]]))["probability"].numpy()
    np.testing.assert_allclose(alone, together[[list(ODD_TEXTS).index(name)]], rtol=0, atol=1e-6)


def test_text_after_a_nul_is_read(serve):
    good, bad = serve(text=tf.constant(["film\0good", "film\0bad"]))["probability"].numpy()
    assert abs(good - bad) > 1e-4


def test_empty_batch_gives_empty_answers(serve):
    answers = serve(text=tf.constant([], tf.string))
    assert {name: (value.shape, value.dtype) for name, value in answers.items()} == {
        "probability": ((0,), tf.float32),
        "label": ((0,), tf.int64),
    }


def test_tokens_signature_answers_like_the_text_signature(exported, preprocessor, serve):
    texts = tf.constant(["a great film", "the movie was very dull ."])
    tokens = {name: tf.cast(value, "int32") for name, value in data.encode(preprocessor, texts).items()}
    for name, value in load_signature(exported, "tokens")(**tokens).items():
        np.testing.assert_allclose(value, serve(text=texts)[name], rtol=0, atol=1e-6)


def test_signatures_are_as_documented(exported):
    signatures = tf.saved_model.load(str(exported)).signatures
    assert set(signatures) == {"serving_default", "tokens", "info"}
    for signature, inputs in {
        "serving_default": {"text": ([None], tf.string)},
        "tokens": dict.fromkeys(("token_ids", "segment_ids", "padding_mask"), ([None, None], tf.int32)),
    }.items():
        specs = signatures[signature].structured_input_signature[1]
        assert {name: (spec.shape.as_list(), spec.dtype) for name, spec in specs.items()} == inputs
        specs = signatures[signature].structured_outputs
        assert {name: (spec.shape.as_list(), spec.dtype) for name, spec in specs.items()} == {
            "probability": ([None], tf.float32),
            "label": ([None], tf.int64),
        }


@pytest.mark.parametrize("head", ["activation", "dense"])
def test_temperature_and_threshold_act_as_in_evaluation(tiny_backbone, preprocessor, tmp_path, head):
    model = build_model(tiny_backbone, head)
    texts = ["a great film", "dull", "the movie was very bad .", "", "superb !"]
    plain = predict_with_keras(model, preprocessor, texts)
    expected = evaluation.apply_temperature(plain, 2.5)
    threshold = float(np.median(expected))  # itself among the answers: >= or > makes a difference
    folder = export_saved_model(model, preprocessor, tmp_path, temperature=2.5, threshold=threshold - 1e-9)
    answers = load_signature(folder)(text=tf.constant(texts))
    np.testing.assert_allclose(answers["probability"], expected, rtol=0, atol=1e-6)
    above = answers["probability"].numpy().astype("float64") >= threshold - 1e-9
    assert answers["label"].numpy().tolist() == above.tolist()
    assert 0 < above.sum() < len(texts)


def test_temperature_brings_saturated_answers_back(tiny_backbone, preprocessor, tmp_path):
    model = build_model(tiny_backbone)
    model.layers[-2].bias.assign([30.0])  # float32: sigmoid(30) is 1
    logits = keras.Model(model.input, model.layers[-1].input)
    text = ["a great film"]
    assert predict_with_keras(model, preprocessor, text) == 1.0
    answer = load_signature(export_saved_model(model, preprocessor, tmp_path, temperature=10.0))(text=tf.constant(text))
    logit = predict_with_keras(logits, preprocessor, text)
    np.testing.assert_allclose(answer["probability"], 1 / (1 + np.exp(-logit / 10)), rtol=0, atol=1e-6)
    assert answer["probability"] < 0.99


def test_threshold_between_adjacent_probabilities_decides_exactly(tiny_backbone, preprocessor, tmp_path):
    model = build_model(tiny_backbone)
    texts = ["a great film"]
    probability = float(predict_with_keras(model, preprocessor, texts)[0])
    above = (probability + float(np.nextafter(np.float32(probability), np.float32(1)))) / 2
    for threshold, label in ((probability, 1), (above, 0)):
        answers = load_signature(export_saved_model(model, preprocessor, tmp_path, threshold=threshold))(
            text=tf.constant(texts)
        )
        assert answers["probability"].numpy()[0] == np.float32(probability)
        assert answers["label"].numpy()[0] == label


def test_mixed_precision_body_exports(preprocessor, tmp_path):
    model = build_model(build_tiny_backbone(dtype="mixed_bfloat16"))
    texts = tf.constant(["a great film", "the movie was very dull .", ""])
    answers = load_signature(export_saved_model(model, preprocessor, tmp_path))(text=texts)
    # In a graph, as `predict` has it: eagerly, bfloat16 is rounded after every operation, also between fused ones.
    predict = tf.function(lambda texts: model(data.encode(preprocessor, texts), training=False)[:, 0])
    np.testing.assert_allclose(answers["probability"], predict(texts), rtol=0, atol=1e-6)


def test_byte_pair_tokenizer_exports_with_its_tables(tmp_path):
    letters = {letter: index for index, letter in enumerate("Ġabdgomilf", start=4)}
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<mask>": 3, **letters, "go": 14, "od": 15}
    tokenizer = keras_nlp.tokenizers.RobertaTokenizer(vocabulary=vocabulary, merges=["g o", "o d"])
    preprocessor = keras_nlp.models.RobertaTextClassifierPreprocessor(tokenizer, sequence_length=16)
    keras.utils.set_random_seed(0)
    backbone = keras_nlp.models.RobertaBackbone(
        len(vocabulary), num_layers=1, num_heads=2, hidden_dim=4, intermediate_dim=8, max_sequence_length=16
    )
    model = keras.Model(backbone.input, keras.layers.Dense(1, "sigmoid")(backbone.output[:, -1, :]))
    texts = ["good film", "bad", "", "a good good film"]
    answers = load_signature(export_saved_model(model, preprocessor, tmp_path))(text=tf.constant(texts))
    expected = predict_with_keras(model, preprocessor, texts)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(answers["probability"], expected, rtol=0, atol=1e-6)


def test_weights_are_stored_once(preprocessor, tmp_path):
    model = build_model(build_tiny_backbone(hidden_dim=64, intermediate_dim=256, vocabulary_size=5000))
    folder = export_saved_model(model, preprocessor, tmp_path)
    stored = sum(file.stat().st_size for file in (folder / "variables").iterdir())
    assert 4 * model.count_params() <= stored <= 1.1 * 4 * model.count_params()


def test_only_core_and_text_operations_are_saved(exported):
    operations = operations_of(exported)
    assert not list(filter(REACHING_OUT.search, operations))
    assert {op for op in operations if "Wordpiece" in op or "UTF8" in op or "Regex" in op} == {
        "CaseFoldUTF8",
        "FastWordpieceTokenizeWithOffsets",
        "NormalizeUTF8",
        "RegexSplitWithOffsets",
        "StaticRegexFullMatch",
        "StaticRegexReplace",
    }


FRESH_PROCESS = """
import json, sys
import tensorflow_text
import tensorflow as tf

folder, texts = sys.argv[1], json.loads(sys.argv[2])
answers = tf.saved_model.load(folder).signatures["serving_default"](text=tf.constant(texts))

with tf.compat.v1.Session(graph=tf.Graph()) as session:  # what TF Serving does
    signature = tf.compat.v1.saved_model.load(session, ["serve"], folder).signature_def["serving_default"]
    served = session.run(
        {name: tensor.name for name, tensor in signature.outputs.items()}, {signature.inputs["text"].name: texts}
    )

assert not {"keras_nlp", "keras_hub", "bertbin_tf"} & set(sys.modules), "needs more than TensorFlow and TF Text"
print(json.dumps([answers["probability"].numpy().tolist(), served["probability"].tolist(), served["label"].tolist()]))
"""


@pytest.mark.slow
def test_fresh_process_needs_only_tensorflow_and_tensorflow_text(model, preprocessor, exported, tmp_path):
    texts = [text for text in ODD_TEXTS.values() if isinstance(text, str)]
    command = [sys.executable, "-c", FRESH_PROCESS, str(exported), json.dumps(texts)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    loaded, served, labels = json.loads(run.stdout.splitlines()[-1])
    expected = predict_with_keras(model, preprocessor, texts)
    np.testing.assert_allclose(loaded, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-6)
    assert labels == [int(probability >= 0.5) for probability in served]


@pytest.mark.parametrize(
    "existing, version", [([], "1"), (["1", "2"], "3"), (["9", "10"], "11"), (["007"], "8"), (["1.bak", "best"], "1")]
)
def test_version_is_the_next_free_number(model, preprocessor, tmp_path, save, existing, version):
    for name in existing:
        (tmp_path / name).mkdir()
    assert export_saved_model(model, preprocessor, tmp_path) == tmp_path / version
    assert sorted(os.listdir(tmp_path)) == sorted([*existing, version])


def test_missing_folders_are_made(model, preprocessor, tmp_path, save):
    assert export_saved_model(model, preprocessor, str(tmp_path / "a" / "b"), version=5) == tmp_path / "a" / "b" / "5"


@pytest.mark.parametrize("existing", ["4", "004"])
def test_version_that_exists_is_refused_and_kept(model, preprocessor, tmp_path, save, existing):
    (tmp_path / existing).mkdir()
    (tmp_path / existing / "kept").touch()
    with pytest.raises(ValueError, match=r"Version 4 exists in .*Leave `version` out"):
        export_saved_model(model, preprocessor, tmp_path, version=4)
    assert [path.name for path in tmp_path.rglob("*")] == [existing, "kept"]


def test_watcher_never_sees_a_number_before_the_model_is_complete(model, preprocessor, tmp_path, save):
    def write(folder):
        seen.extend(os.listdir(tmp_path))
        (folder / "saved_model.pb").touch()

    seen = []
    save(write)
    folder = export_saved_model(model, preprocessor, tmp_path)
    assert len(seen) == 1 and not seen[0].isdecimal()
    assert os.listdir(tmp_path) == ["1"] and os.listdir(folder) == ["saved_model.pb"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failing_save_leaves_the_folder_as_it_was(model, preprocessor, tmp_path, save, failure):
    def write(folder):
        (folder / "half").touch()
        raise failure

    (tmp_path / "1").mkdir()
    save(write)
    with pytest.raises(type(failure)):
        export_saved_model(model, preprocessor, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["1"]


def test_exports_at_the_same_moment_get_versions_of_their_own(tmp_path):
    """All wait until each has written its model, then take their numbers at once."""
    barrier, published = threading.Barrier(6), []

    def write(folder, number):
        (folder / "owner").write_text(f"{threading.get_ident()} {number}")
        if number == 1:
            barrier.wait()

    threads = [
        threading.Thread(target=lambda: published.append(saved_model._write_version(tmp_path, None, write)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in published) == sorted(os.listdir(tmp_path)) == list("123456")
    owners = [(path / "owner").read_text().split() for path in published]
    assert len({owner for owner, _ in owners}) == 6
    assert [number for _, number in owners] == [path.name for path in published]


def test_explicit_version_taken_in_the_meantime_is_refused(model, preprocessor, tmp_path, save):
    def write(folder):
        (folder / "saved_model.pb").touch()
        (tmp_path / "3").mkdir()
        (tmp_path / "3" / "kept").touch()

    save(write)
    with pytest.raises(ValueError, match="Version 3 exists"):
        export_saved_model(model, preprocessor, tmp_path, version=3)
    assert [path.name for path in tmp_path.rglob("*")] == ["3", "kept"]


def test_folder_that_cannot_be_written_is_named(model, preprocessor, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"Cannot write to `path`. Received: '.*file/models' \(Not a directory\)"):
        export_saved_model(model, preprocessor, tmp_path / "file" / "models")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_named(model, preprocessor, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied"):
        export_saved_model(model, preprocessor, tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"threshold": 1}, "threshold=1"),
        ({"version": 0}, "version=0"),
        ({"version": "2"}, "version='2'"),
    ],
)
def test_argument_out_of_range_is_named(model, preprocessor, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_saved_model(model, preprocessor, tmp_path / "models", **arguments)
    assert not (tmp_path / "models").exists()


def build_headless(kind):
    backbone = build_tiny_backbone()
    pooled = backbone(backbone.input)["pooled_output"]
    dense = keras.layers.Dense
    if kind == "not built":
        return keras.Sequential([dense(1, "sigmoid")])
    if kind == "one tensor in":
        return keras.Sequential([keras.Input((4,)), dense(1, "sigmoid")])
    outputs = {
        "softmax": lambda: dense(2, "softmax")(pooled),
        "logits": lambda: dense(1)(pooled),
        "two outputs": lambda: [dense(1, "sigmoid")(pooled), dense(1, "sigmoid")(pooled)],
        "reshaped": lambda: keras.layers.Reshape((1,))(dense(1, "sigmoid")(pooled)),
        "operation": lambda: keras.ops.sigmoid(dense(1)(pooled)),
    }[kind]()
    return keras.Model(backbone.input, outputs)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("not built", "a Sequential with outputs of shape unknown"),
        ("one tensor in", "from a dict of tokens"),
        ("softmax", r"outputs of shape \[\(None, 2\)\]"),
        ("two outputs", r"outputs of shape \[\(None, 1\), \(None, 1\)\]"),
        ("logits", "the layer '.*' of type Dense"),
        ("reshaped", "the layer '.*' of type Reshape"),
        ("operation", "the layer '.*' of type Dense"),
    ],
)
def test_model_without_one_final_sigmoid_is_refused(preprocessor, tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        export_saved_model(build_headless(kind), preprocessor, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def build_distil_bert_preprocessor():
    tokenizer = keras_nlp.tokenizers.DistilBertTokenizer(list(VOCABULARY))
    return keras_nlp.models.DistilBertTextClassifierPreprocessor(tokenizer, sequence_length=16)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: build_preprocessor([*VOCABULARY, "more", "words"]), "cannot take 16 tokens .* of a vocabulary of 26"),
        (lambda: build_preprocessor(sequence_length=65), "cannot take 65 tokens"),
        (build_distil_bert_preprocessor, "does not return segment_ids, .*DistilBertTextClassifierPreprocessor"),
        (lambda: build_preprocessor().tokenizer, "Received: a BertTokenizer"),
        (lambda: str.split, "Received: a method_descriptor"),
    ],
)
def test_preprocessor_of_another_model_is_refused(model, tmp_path, build, message):
    with pytest.raises(ValueError, match=message):
        export_saved_model(model, build(), tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.checkpoint
def test_real_checkpoint_answers_200_real_texts_as_keras_does(tmp_path):
    from bertbin_tf.models import binary_classifier, load_backbone, load_preprocessor

    keras.utils.set_random_seed(0)
    preprocessor = load_preprocessor("minilm", sequence_length=64)
    model = binary_classifier(load_backbone("minilm"), base_rate=0.5, kernel_initializer="glorot_uniform")
    texts = [text for text, _ in data.read("vader/movies:test[:200]").as_numpy_iterator()]
    folder = export_saved_model(model, preprocessor, tmp_path)
    expected = predict_with_keras(model, preprocessor, texts)
    assert len(texts) == 200 and expected.std() > 0.01
    serve = load_signature(folder)
    np.testing.assert_allclose(serve(text=tf.constant(texts))["probability"], expected, rtol=0, atol=1e-6)
    odd = list(ODD_TEXTS.values())
    np.testing.assert_allclose(
        serve(text=tf.constant(odd))["probability"], predict_with_keras(model, preprocessor, odd), rtol=0, atol=1e-6
    )
    stored = sum(file.stat().st_size for file in (folder / "variables").iterdir())
    assert stored <= 1.1 * 4 * model.count_params()


def test_info_says_what_is_served_once_for_each_text(model, preprocessor, tmp_path):
    facts = {"base_rate": 0.3, "preset": "tiny", "fingerprint": "ab12"}
    folder = export_saved_model(model, preprocessor, tmp_path / "movies", temperature=1.5, threshold=0.4, facts=facts)
    info = Servable(folder).info()
    assert info == {
        "name": "movies",
        "version": 1,
        "temperature": pytest.approx(1.5),
        "threshold": pytest.approx(0.4),
        "base_rate": pytest.approx(0.3),
        "preset": "tiny",
        "fingerprint": "ab12",
    }
    answers = load_signature(folder, "info")(text=tf.constant(["a", "b", "c"]))
    assert {value.shape[0] for value in answers.values()} == {3}


def test_servable_answers_like_the_signature(exported, serve):
    texts = [*ODD_TEXTS.values()] * 6  # more than one batch
    servable = Servable(exported)
    for name, values in servable.answer(texts).items():
        np.testing.assert_allclose(values, serve(text=tf.constant(texts))[name], rtol=0, atol=1e-6)
    assert servable.answer([])["probability"].shape == (0,)
    assert servable.version == 1


def test_servable_refuses_what_the_graph_cannot_take(exported):
    servable = Servable(exported)
    ids = {name: np.full((1, 4), 10**6, np.int32) for name in servable.signatures["tokens"].inputs}
    with pytest.raises(ValueError, match=r"The model cannot take these inputs: .*indices.* is not in \[0, "):
        servable.run(ids, "tokens")
    with pytest.raises(ValueError, match='"other" not found in signature def'):
        servable.run({}, "other")


def test_warm_up_requests_are_those_of_tf_serving(exported):
    requests = extras.read_warmup(exported)
    assert [request.inputs["text"].tensor_shape.dim[0].size for request in requests] == [1, 1, 8, 8, 32, 32]
    assert {(request.model_spec.name, request.model_spec.signature_name) for request in requests} == {
        ("tiny", "serving_default")
    }


def test_verify_compares_with_what_was_noted_and_with_the_run(model, preprocessor, exported):
    verification = verify(exported, predict=lambda texts: predict_with_keras(model, preprocessor, texts))
    assert (verification.texts, verification.warmups) == (20, 6)
    assert verification.difference <= 1e-6 and verification.run_difference <= 1e-6
    with pytest.raises(ValueError, match="is not what the run answers"):
        verify(exported, predict=lambda texts: np.zeros(len(texts)))


def spoil(version, kind):
    """Makes an exported version bad in one way."""
    golden = version / "assets.extra" / "golden.json"
    if kind == "no golden file":
        golden.unlink()
    elif kind == "golden file cut":
        golden.write_bytes(golden.read_bytes()[:40])
    elif kind == "golden texts are numbers":
        golden.write_text(json.dumps({"texts": [1], "probabilities": [0.5], "run": "", "fingerprint": ""}))
    elif kind == "other answers noted":
        content = json.loads(golden.read_text())
        content["probabilities"][3] += 0.01
        golden.write_text(json.dumps(content))
    elif kind == "warm-up file cut":
        file = version / "assets.extra" / "tf_serving_warmup_requests"
        file.write_bytes(file.read_bytes()[:-7])
    elif kind == "no graph":
        (version / "saved_model.pb").unlink()
    elif kind == "graph cut":
        (version / "saved_model.pb").write_bytes((version / "saved_model.pb").read_bytes()[:1000])
    elif kind == "no weights":
        next((version / "variables").glob("*.index")).unlink()


@pytest.mark.parametrize(
    "kind, message",
    [
        ("no golden file", "has no golden file"),
        ("golden file cut", "golden.json' is damaged"),
        ("golden texts are numbers", "golden.json' is damaged: texts must be strings"),
        ("other answers noted", "does not answer as the model did when it was exported"),
        ("warm-up file cut", "tf_serving_warmup_requests' is damaged"),
        ("no graph", "holds no SavedModel"),
        ("graph cut", "holds no SavedModel"),
        ("no weights", "cannot be loaded"),
    ],
)
def test_bad_version_is_refused(exported, tmp_path, kind, message):
    version = tmp_path / "2"
    shutil.copytree(exported, version)
    spoil(version, kind)
    with pytest.raises(ValueError, match=message):
        verify(version)


REACHING = {
    "ReadFile": lambda text: tf.io.read_file(text[0]),
    "TextLineDataset": lambda text: next(iter(tf.data.TextLineDataset(text).take(1))),
    "PrintV2": lambda text: (tf.print(text, output_stream="file:///dev/null"), text)[1],
}


@pytest.mark.parametrize("name", REACHING)
def test_graph_that_reaches_out_is_not_loaded(tmp_path, name):
    module = tf.Module()
    module.answer = tf.function(REACHING[name], input_signature=[tf.TensorSpec([None], tf.string)])
    tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": module.answer})
    with pytest.raises(ValueError, match=f"is not loaded: its graph has the operations .*{name}"):
        Servable(tmp_path / "1")
