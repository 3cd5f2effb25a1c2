// Elements, and words for those who listen instead of look.

/** An element with properties and children. `data-*`, `aria-*` and `role` become attributes; false leaves them out. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && !name.startsWith("aria")) made[name] = value;
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return made;
}

export const byId = (id) => document.getElementById(id);

const politely = byId("announcer");

/** Have a sentence read out once the reader is quiet. */
export function announce(sentence) {
  if (politely && politely.textContent !== sentence) politely.textContent = sentence;
}

export const prefersStill = matchMedia("(prefers-reduced-motion: reduce)");
