// Below the lanes: the threshold, and what waits.

const NARROW = 420; // px: a phone's width

/** Draw counters as steps from `top` on. `x`: where a time is. */
export function drawCounters(context, paint, counters, { top, height, width, x, edgeMs }) {
  const from = top + 20, base = top + height - 22, tall = base - from;
  const first = counters.findLastIndex(({ ms }) => x(ms) <= 0);
  const seen = counters.slice(Math.max(0, first)).filter(({ ms }) => ms <= edgeMs);
  if (!seen.length) return;
  const most = Math.max(4, ...seen.map(({ waiting, decodes }) => Math.max(waiting, decodes)));
  const steps = (valueOf, scale) => seen.map((one, at) => [Math.max(0, x(one.ms)), at + 1 < seen.length ? x(seen[at + 1].ms) : width, base - tall * Math.min(1, valueOf(one) / scale)]);
  area(context, steps(({ waiting }) => waiting, most), base, paint.unet);
  area(context, steps(({ decodes }) => decodes, most), base, paint.vae);
  const controlled = seen.some(({ threshold }) => threshold);
  if (controlled) line(context, steps(({ threshold }) => threshold, 1), paint.ink);
  const last = seen.at(-1);
  context.font = "600 11px system-ui, sans-serif";
  let at = 7;
  const [wait, pending] = width < NARROW ? ["wait", "to decode"] : ["tasks wait", "decodes pending"];
  for (const [words, colour] of [[`${last.waiting} ${wait}`, paint.unet], [`${last.decodes} ${pending}`, paint.vae], [controlled && `threshold ${last.threshold.toFixed(2)}`, paint.ink]]) {
    if (!words) continue;
    context.fillStyle = colour;
    context.fillText(words, at, top + 13);
    at += context.measureText(words).width + 16;
  }
}

function area(context, steps, base, colour) {
  context.fillStyle = colour;
  context.globalAlpha = 0.28;
  for (const [from, to, y] of steps) context.fillRect(from, y, to - from, base - y);
  context.globalAlpha = 1;
  line(context, steps, colour);
}

function line(context, steps, colour) {
  context.beginPath();
  for (const [from, to, y] of steps) {
    context.lineTo(from, y);
    context.lineTo(to, y);
  }
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  context.stroke();
}
