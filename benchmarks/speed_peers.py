"""What `speed.py` compares with, in the environment of `requirements-peers.txt`, one program each: see `turns`.

    python speed_peers.py trainer|trainer_by_length|pipeline|onnx|peak FOLDER KIND LIMIT

Two threads each, as many as the machine that this was written on has cores.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from serving_peers import NUM_THREADS, onnx_session, pipeline_of
from speed_texts import BATCH_SIZES, PREDICTED_ROWS, RATE, load_texts
from turns import Player


def trainer(folder, kind, limit, player, sampling="random"):
    """transformers' `Trainer` with dynamic padding, its AdamW, warm-up over a tenth and linear decay."""
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

    class EachStep(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            player.step()

    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=BATCH_SIZES[kind],
        num_train_epochs=4,
        learning_rate=RATE,
        warmup_steps=0.1,
        train_sampling_strategy=sampling,
        use_cpu=True,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    transformers.Trainer(
        model,
        arguments,
        train_dataset=rows,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        callbacks=[EachStep()],
    ).train()


def trainer_by_length(folder, kind, limit, player):
    """The same with texts of similar length in a batch."""
    trainer(folder, kind, limit, player, sampling="group_by_length")


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
    what, folder, kind, limit = sys.argv[1:]
    torch.set_num_threads(NUM_THREADS)
    transformers.set_seed(0)
    np.random.seed(0)
    programs = {program.__name__: program for program in (trainer, trainer_by_length, pipeline, onnx, peak)}
    programs[what](Path(folder), kind, int(limit), Player())


if __name__ == "__main__":
    main()
