"use strict";
// Recounts the decisions on the validation texts when the threshold is moved.
const holder = document.getElementById("rows");
if (holder) {
  const { labels, probabilities, threshold: tuned } = JSON.parse(holder.textContent);
  const slider = document.getElementById("threshold");
  const line = document.getElementById("histogram-threshold");
  const tunedText = document.getElementById("threshold-value").textContent;
  const show = (id, text) => { document.getElementById(id).textContent = text; };
  const share = (part, whole) => (whole ? (part / whole).toFixed(3) : "-");

  // The slider stops at every thousandth; the tuned threshold may lie between two of them.
  const count = (threshold) => {
    const cells = { tn: 0, fp: 0, fn: 0, tp: 0 };
    labels.forEach((label, row) => {
      const said = probabilities[row] >= threshold;
      cells[label ? (said ? "tp" : "fn") : (said ? "fp" : "tn")] += 1;
    });
    const { tn, fp, fn, tp } = cells;
    Object.entries(cells).forEach(([id, number]) => show(id, number.toLocaleString("en")));
    show("threshold-value", threshold === tuned ? tunedText : threshold.toFixed(3));
    show("accuracy", share(tp + tn, labels.length));
    show("precision", share(tp, tp + fp));
    show("recall", share(tp, tp + fn));
    show("specificity", share(tn, tn + fp));
    show("f1", share(2 * tp, 2 * tp + fp + fn));
    if (line) line.setAttribute("transform", `translate(${(threshold - tuned) * Number(slider.dataset.width)} 0)`);
  };

  document.getElementById("slider").hidden = false;
  slider.addEventListener("input", () => count(Number(slider.value)));
  document.getElementById("threshold-reset").addEventListener("click", () => { slider.value = tuned; count(tuned); });
}
