# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The same cells on a TPU, on GPUs and on a CPU
#
# **Claim: written as a TPU needs it (one shape, full batches, model and optimizer in the strategy's scope) the same
# code trains on whatever is there, and its step is traced once for each replica.** In Colab, choose a TPU as runtime
# type and install the package and TensorFlow for it first (`%pip install tensorflow-tpu`, and `%pip install` with the
# address of this repository). The outputs below are from a CPU with two logical devices: the project has had no TPU to
# run on.

# %%
import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from bertbin_tf import data, distribute
from bertbin_tf.memory import keep_freed_memory
from bertbin_tf.metrics import LogitStatistics
from bertbin_tf.models import binary_classifier, load_backbone, load_preprocessor
from bertbin_tf.optimizers import LayerwiseAdamW, layer_table, warmup_cosine

# %% [markdown]
# ## The devices
#
# `strategy("auto")` takes a TPU where there is one, else all GPUs, else the CPU. It has to be the first thing that
# TensorFlow does. Where there is only a CPU, it is split here into two devices, so that there is something to share.

# %%
keep_freed_memory()  # on a CPU: steps are faster
tf.get_logger().setLevel("ERROR")  # or each reduction over the replicas is a line
if not tf.config.list_physical_devices("TPU") and not tf.config.list_physical_devices("GPU"):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
else:
    strategy = distribute.strategy("auto")
replicas = strategy.num_replicas_in_sync
print(f"{type(strategy).__name__} with {replicas} replicas")

# %% [markdown]
# ## Batches of one shape
#
# XLA compiles for every shape, which takes longer than many a step. So all texts are padded to one length and what does
# not fill a batch is left out; both are then known before the first batch is. 8 rows for each replica, of film reviews
# of less than 60 characters: short texts make short steps.

# %%
LENGTH = 24
batch_size = 8 * replicas
preprocessor = load_preprocessor("minilm", sequence_length=LENGTH)


def short_reviews(split, num_rows):
    reviews = data.read(f"vader/movies:{split}").filter(lambda text, label: tf.strings.length(text) < 60)
    return data.tokenize(reviews.take(num_rows), preprocessor)


batches = data.batch_by_length(
    short_reviews("train", 480), batch_size, boundaries=[LENGTH], shuffle_seed=0, drop_remainder=True
)
print({name: spec.shape for name, spec in batches.element_spec[0].items()}, f"{len(batches)} batches")

# %% [markdown]
# ## Model and optimizer in the scope
#
# Strings stay outside: the tokenizer ran already, on the host. `steps_per_execution` is left at 1, because with more
# Keras 3.15 fails on several replicas, whatever the optimizer.

# %%
keras.utils.set_random_seed(0)
with strategy.scope():
    model = binary_classifier(load_backbone("minilm"), base_rate=data.base_rate(data.read("vader/movies:train")))
    model.compile(
        LayerwiseAdamW(warmup_cosine(1e-4, batches, epochs=1), {"logit": 20.0}, global_clipnorm=1.0),
        "binary_crossentropy",
        metrics=[LogitStatistics()],
    )

traces = []
train_step = model.train_step
model.train_step = lambda batch: traces.append(1) or train_step(batch)  # Python runs it only while it is traced
history = model.fit(batches, shuffle=False, verbose=2)
print(f"traced {len(traces)} times, on {replicas} replicas")

# %%
layer_table(model)

# %% [markdown]
# ## The claim

# %%
test = data.batch_by_length(short_reviews("test", 320), 2 * batch_size, boundaries=[LENGTH], drop_remainder=True)
labels = np.concatenate([label for _, label in test.as_numpy_iterator()])
probabilities = model.predict(test, verbose=0)[:, 0]
auc = roc_auc_score(labels, probabilities)
assert all(None not in spec.shape for spec in batches.element_spec[0].values()), "a shape is not known beforehand"
assert len(traces) <= 2 * replicas, "the step was traced again"
assert auc > 0.75 and np.isfinite(probabilities).all(), "the model did not learn"
print(f"Holds: ROC AUC {auc:.3f} after {len(batches)} steps on {replicas} replicas")
