// A slider and a box to type into, which say the same.
import { byId } from "../shared/dom.js";

/** The pair `id` and `id`-typed. The box takes more than the slider offers: the server says what is too much. */
export function slider(id) {
  const range = byId(id), typed = byId(`${id}-typed`);
  range.addEventListener("input", () => { typed.value = range.value; });
  typed.addEventListener("input", () => { if (typed.value) range.value = typed.value; });
  return {
    get value() { return typed.value.trim() === "" ? undefined : Number(typed.value); },
    set value(value) { range.value = typed.value = value; },
    bounds(least, most) { range.min = least; range.max = most; if (typed.value) range.value = typed.value; },
  };
}
