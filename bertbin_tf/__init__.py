"""Binary text classification with a pre-trained BERT under a sigmoid head, made to train.

The story of one batch, module by module:

* `assets` fetches the default checkpoint and data, once.
* `datasets` registers the default data with TensorFlow Datasets: `import bertbin_tf.datasets`, then
  `tfds.load("vader/movies")`.
* `data` reads `(text, label)` rows from anywhere, splits them, tokenizes them, batches them by length.
* `distribute` picks the devices, `memory` keeps what a step frees for the next.
* `initializers` and `models` put a keras-nlp backbone under a sigmoid head that starts at the base rate.
* `optimizers` steps every layer at its own rate; `metrics` and `callbacks` watch and adjust.
* `recipe` runs the whole thing from one small, saved description.
* `evaluation` says how good the probabilities are; `export` hands text-in, probability-out to TF Serving.
* `serving` answers over HTTP where there is no TF Serving, and asks either.
* `doctor` says why somebody's model does not train; `report` makes a page of a run, or of several.

Every piece is plain Keras and works alone. Importing this package imports none of them.
"""

import os

__version__ = "0.1.0"

# Keras chooses its backend when it is first imported; ours is always TensorFlow.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
