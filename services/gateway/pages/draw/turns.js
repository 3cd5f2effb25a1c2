// Turns: a browser opens six connections to a host at most, and each job takes one while it is drawn.

const AT_ONCE = 3;
const waiting = [];
let taken = 0;

/** Do `work` in its turn. `told` hears how many go first, while some do. Throws AbortError once `signal` is aborted. */
export async function inTurn(work, told, signal) {
  if (taken < AT_ONCE) taken += 1;
  else await turnOf(told, signal);
  try {
    return await work();
  } finally {
    const next = waiting.shift();
    if (next) next.go(); // it has this turn now
    else taken -= 1;
    tell();
  }
}

function turnOf(told, signal) {
  return new Promise((go, leave) => {
    const one = { go, told };
    waiting.push(one);
    tell();
    signal.addEventListener("abort", () => {
      if (!waiting.includes(one)) return;
      waiting.splice(waiting.indexOf(one), 1);
      tell();
      leave(signal.reason);
    });
  });
}

function tell() {
  waiting.forEach((one, ahead) => one.told(ahead));
}
