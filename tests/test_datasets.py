import pytest
import tensorflow_datasets as tfds

import bertbin_tf.datasets
from bertbin_tf import assets, data


@pytest.fixture
def tiny_vader(tmp_path, monkeypatch):
    """Files laid out as in the archive: number, mean valence, text; UTF-8, tab-separated, quotes mean nothing."""
    folder = tmp_path / "vader"
    folder.mkdir()
    lines = [f"{i}_1\t{(i % 5 - 2) * 0.75 - 0.1}\ttext {i}" for i in range(98)]
    # One text rated twice, once above and once below 0, and one with everything that has gone wrong with such files.
    lines += ["98_1\t0.5\ttext 0", '99_1\t-1.25\t"an unclosed quote, a naïve – dash 😀 ']
    for config in bertbin_tf.datasets.Vader.BUILDER_CONFIGS:
        (folder / config.file).write_text("\n".join(lines), encoding="utf-8", newline="\r\n")
    monkeypatch.setenv("BERTBIN_TF_HOME", str(tmp_path))
    monkeypatch.setattr(assets, "fetch", {"vader": folder}.__getitem__)
    return folder


def test_every_config_is_registered_with_tfds():
    assert set(bertbin_tf.datasets.Vader.builder_configs) == {"movies", "tweets", "amazon", "nyt"}
    assert tfds.builder_cls("vader") is bertbin_tf.datasets.Vader


def test_rows_are_read_as_they_were_written(tiny_vader, tmp_path):
    loaded = tfds.load("vader/movies", data_dir=tmp_path)
    rows = {row["text"].decode(): row for split in loaded.values() for row in tfds.as_numpy(split)}
    assert len(loaded["train"]) + len(loaded["test"]) == 100
    assert rows['"an unclosed quote, a naïve – dash 😀']["valence"] == pytest.approx(-1.25)
    assert set(next(iter(rows.values()))) == {"text", "label", "valence"}
    assert all(row["label"] == (row["valence"] > 0) for row in rows.values())


def test_splits_share_no_text_and_keep_the_base_rate(tiny_vader, tmp_path):
    with pytest.warns(UserWarning, match="'text 0'"):
        splits = [data.read(f"vader/nyt:{split}[:100%]") for split in ("train", "test")]
    texts = [{text for text, _ in split.as_numpy_iterator()} for split in splits]
    assert not texts[0] & texts[1] and len(texts[0] | texts[1]) == 99
    assert len(texts[1]) == 20
    assert data.base_rate(splits[0]) == pytest.approx(data.base_rate(splits[1]), abs=0.02)


def test_another_process_may_prepare_the_same_set_meanwhile(tiny_vader, tmp_path, monkeypatch):
    prepare = bertbin_tf.datasets.Vader.download_and_prepare

    def be_overtaken(builder):
        monkeypatch.setattr(bertbin_tf.datasets.Vader, "download_and_prepare", prepare)
        data.read("vader/tweets")
        prepare(builder)

    monkeypatch.setattr(bertbin_tf.datasets.Vader, "download_and_prepare", be_overtaken)
    assert len(list(data.read("vader/tweets"))) > 0
    assert [path.name for path in (tmp_path / "tensorflow_datasets").iterdir()] == ["vader"]


@pytest.mark.filterwarnings("ignore:.*labelled both")
def test_slices_work_and_train_is_the_default(tiny_vader):
    whole = [text for text, _ in data.read("vader/tweets").as_numpy_iterator()]
    part = [text for text, _ in data.read("vader/tweets:train[:50%]").as_numpy_iterator()]
    assert part == whole[: len(part)] and len(part) == pytest.approx(len(whole) / 2, abs=1)


def test_reading_prints_nothing_and_prepares_below_home(tiny_vader, tmp_path, capfd):
    data.read("vader/amazon:test")
    assert capfd.readouterr().out == ""
    assert (tmp_path / "tensorflow_datasets" / "vader" / "amazon").is_dir()


@pytest.mark.checkpoint
@pytest.mark.parametrize(
    "config, num_train, num_test, base_rate",
    [
        ("movies", 8484, 2121, 0.494),
        ("tweets", 3360, 840, 0.690),
        ("amazon", 2966, 742, 0.575),
        ("nyt", 4149, 1041, 0.425),
    ],
)
@pytest.mark.filterwarnings("ignore:.*labelled both")
def test_real_rows_are_as_documented(config, num_train, num_test, base_rate):
    train, test = data.read(f"vader/{config}"), data.read(f"vader/{config}:test")
    assert (len(train), len(test)) == (num_train, num_test)
    assert data.base_rate(train) == pytest.approx(base_rate, abs=5e-4)
    assert data.base_rate(test) == pytest.approx(base_rate, abs=5e-3)
