// The API key, where this server asks for one. Kept for this tab alone.
const NAME = "synerdiff-key";

/** The header that carries the key; none without one. */
export function authorization() {
  const key = sessionStorage.getItem(NAME);
  return key ? { authorization: `Bearer ${key}` } : {};
}

export function keepKey(key) {
  if (key) sessionStorage.setItem(NAME, key);
  else sessionStorage.removeItem(NAME);
}
