"""What `serving.py` compares with: transformers' pipeline, or ONNX Runtime, behind Starlette and uvicorn.

    python serving_peers.py pipeline|onnx FOLDER LIMIT

Runs in the environment of `requirements-peers.txt`. Both have two threads, pad each batch to its longest text, and
answer requests one after the other in a thread, as an application in which nobody wrote a batcher does.
"""

import asyncio
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

NUM_THREADS = 2


def pipeline_of(folder, limit):
    """Returns transformers' text-classification pipeline, as its guide has it, with batches of 32."""
    import torch
    import transformers

    torch.set_num_threads(NUM_THREADS)
    classify = transformers.pipeline("text-classification", str(folder), batch_size=32, device="cpu")
    classify.model.eval()

    def answer(texts):
        with torch.inference_mode():
            rows = classify(texts, truncation=True, max_length=limit, function_to_apply="sigmoid")
        return [row["score"] for row in rows]

    return answer


def onnx_session(folder, limit):
    """Returns ONNX Runtime on the model that torch exports, with the tokenizer of the pipeline."""
    import onnxruntime
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    file = Path(folder) / "model.onnx"
    names = ["input_ids", "attention_mask", "token_type_ids"]
    tokens = tokenizer(["a great film", "dull"], padding=True, return_tensors="pt")
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        kwargs={name: tokens[name] for name in names},
        f=str(file),
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(names, axes),
        dynamo=True,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = NUM_THREADS
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def answer(texts):
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="np")
        feed = {name: tokens[name].astype("int64") for name in names}
        logits = session.run(["logits"], feed)[0][:, 0].astype("float64")
        return (1 / (1 + np.exp(-logits))).tolist()

    return answer


def main():
    kind, folder, limit = sys.argv[1:]
    answer = {"pipeline": pipeline_of, "onnx": onnx_session}[kind](folder, int(limit))
    answer(["warm up", "a longer one " * 100])
    thread = ThreadPoolExecutor(1)

    async def predict(request):
        texts = json.loads(await request.body())["instances"]
        probabilities = await asyncio.get_running_loop().run_in_executor(thread, answer, texts)
        rows = [{"probability": probability, "label": int(probability >= 0.5)} for probability in probabilities]
        return Response(json.dumps({"predictions": rows}), media_type="application/json")

    app = Starlette(routes=[Route("/{path:path}", predict, methods=["POST"])])
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(f"answers at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
