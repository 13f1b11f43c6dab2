"""What `speed.py` compares with, in the environment of `requirements-peers.txt`, one program each: see `turns`.

    python speed_peers.py PROGRAM FOLDER KIND LIMIT SEED, with one of the functions in `main` for a program

Two threads each, as many as the machine that this was written on has cores.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from serving_peers import NUM_THREADS, onnx_session, pipeline_of
from speed_texts import BATCH_SIZES, GOAL, LOOK_EVERY, PREDICTED_ROWS, RATE, load_texts
from turns import Player, Race

SETFIT_STEPS = 200  # of 16 pairs, its own batch size


def trainer(folder, kind, limit, player, sampling="random"):
    """transformers' `Trainer` with dynamic padding, its AdamW, warm-up over a tenth and linear decay."""
    made = _make_trainer(folder, kind, limit, player, sampling, epochs=4)
    made.add_callback(EachStep(player))
    made.train()


def trainer_by_length(folder, kind, limit, player):
    """The same with texts of similar length in a batch."""
    trainer(folder, kind, limit, player, sampling="group_by_length")


def _make_trainer(folder, kind, limit, player, sampling, epochs):
    texts, labels = load_texts(folder, kind, "train")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "peer")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "peer", num_labels=2, ignore_mismatched_sizes=True, problem_type="single_label_classification"
    )
    tokens = tokenizer(texts, truncation=True, max_length=limit)
    rows = [
        {name: tokens[name][i] for name in tokens} | {"labels": int(labels[i]), "length": len(tokens["input_ids"][i])}
        for i in range(len(texts))
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=BATCH_SIZES[kind],
        num_train_epochs=epochs,
        learning_rate=RATE,
        warmup_steps=0.1,
        train_sampling_strategy=sampling,
        use_cpu=True,
        seed=player.seed,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return transformers.Trainer(
        model, arguments, train_dataset=rows, data_collator=transformers.DataCollatorWithPadding(tokenizer)
    )


class EachStep(transformers.TrainerCallback):
    """Counts training steps for the benchmark."""

    def __init__(self, counter):
        self._counter = counter

    def on_step_end(self, *args, **kwargs):
        self._counter.step()


def race(folder, kind, limit, player, sampling="random"):
    """`Trainer` for one epoch, until it is good enough."""
    made = _make_trainer(folder, kind, limit, player, sampling, epochs=1)
    contest = Race(player, GOAL, LOOK_EVERY)
    with contest.pause():
        texts, labels = load_texts(folder, kind, "test")
        order = np.argsort([len(text) for text in texts])
        tokens = made.data_collator.tokenizer([texts[i] for i in order], truncation=True, max_length=limit)
        batches = [
            made.data_collator({name: tokens[name][start : start + 64] for name in tokens})
            for start in range(0, len(texts), 64)
        ]

    def answer():
        made.model.eval()
        with torch.inference_mode():
            logits = np.concatenate([made.model(**batch).logits for batch in batches])
        made.model.train()
        return logits.argmax(axis=1)

    contest.labels, contest.answer = labels[order], answer
    made.add_callback(EachStep(contest))
    made.train()
    contest.end()


def race_by_length(folder, kind, limit, player):
    """The same with texts of similar length in a batch."""
    race(folder, kind, limit, player, sampling="group_by_length")


def race_setfit(folder, kind, limit, player):
    """SetFit: pairs of texts for the encoder, then a logistic regression on its vectors of all training texts."""
    import datasets
    import setfit
    from sentence_transformers import SentenceTransformer, models
    from sklearn.linear_model import LogisticRegression

    texts, labels = load_texts(folder, kind, "train")
    test_texts, test_labels = load_texts(folder, kind, "test")
    encoder = models.Transformer(str(folder / "peer"), max_seq_length=limit)
    body = SentenceTransformer(modules=[encoder, models.Pooling(encoder.get_word_embedding_dimension())])
    # Its own head, with more iterations than scikit-learn's 100, which do not suffice for 7,635 rows.
    model = setfit.SetFitModel(model_body=body, model_head=LogisticRegression(max_iter=1000))
    contest = Race(player, GOAL, LOOK_EVERY)
    contest.labels, contest.answer = test_labels, lambda: np.asarray(model.predict(test_texts))
    contest.finish = lambda: model.fit(texts, labels.tolist(), num_epochs=1)
    arguments = setfit.TrainingArguments(
        output_dir=str(folder / "setfit"),
        max_steps=SETFIT_STEPS,
        seed=player.seed,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        show_progress_bar=False,
    )
    rows = datasets.Dataset.from_dict({"text": texts, "label": labels.tolist()})
    setfit.Trainer(model, arguments, train_dataset=rows, callbacks=[EachStep(contest)]).train()
    contest.end()


def pipeline(folder, kind, limit, player):
    """transformers' text-classification pipeline in batches of 32, in the order of the texts, as its guide has it."""
    texts, _ = load_texts(folder, kind, "test")
    answer = pipeline_of(folder / "peer", limit)
    player.play(lambda count: answer(texts[:count]), 64)


def onnx(folder, kind, limit, player):
    """ONNX Runtime in float32, on batches sorted by length."""
    answer_batch = onnx_session(folder / "peer", limit)

    def answer(texts):
        texts = sorted(texts, key=len)
        for start in range(0, len(texts), PREDICTED_ROWS):
            answer_batch(texts[start : start + PREDICTED_ROWS])

    texts, _ = load_texts(folder, kind, "test")
    player.play(lambda count: answer(texts[:count]), 64)


def peak(folder, kind, limit, player):
    """Square matrix products of 2,048, in float32: what the machine can do."""
    matrix = torch.randn(2048, 2048)
    player.play(lambda count: [matrix @ matrix for _ in range(count)], 1)


def main():
    what, folder, kind, limit, seed = sys.argv[1:]
    torch.set_num_threads(NUM_THREADS)
    transformers.set_seed(int(seed))
    programs = (trainer, trainer_by_length, pipeline, onnx, peak, race, race_by_length, race_setfit)
    {program.__name__: program for program in programs}[what](Path(folder), kind, int(limit), Player(int(seed)))


if __name__ == "__main__":
    main()
