// Pictures as they come, and the files they are saved as.

const TYPES = { png: "image/png", jpeg: "image/jpeg", webp: "image/webp" };

/** A blob of base64. */
export function fileOf(base64, format = "png") {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: TYPES[format] });
}

/** "a slice of pizza", 7 -> "a-slice-of-pizza-7.png". */
export function fileName(prompt, seed, format = "png") {
  const words = prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 48);
  return `${words || "picture"}-${seed}.${format}`;
}
