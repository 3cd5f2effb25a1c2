// Samplers by the names that people know.

const ACRONYMS = { ddim: "DDIM", ddpm: "DDPM", pndm: "PNDM", deis: "DEIS", kdpm2: "KDPM2", lcm: "LCM", sde: "SDE", dpmsolver: "DPM-Solver++" };

/** "dpmsolver_multistep_karras" -> "DPM-Solver++ multistep Karras". */
export function samplerName(name) {
  if (name === "own") return "The model's own";
  const words = name.split("_").map((word) => ACRONYMS[word] ?? (word === "karras" ? "Karras" : word));
  const joined = words.join(" ");
  return joined.charAt(0).toUpperCase() + joined.slice(1);
}
