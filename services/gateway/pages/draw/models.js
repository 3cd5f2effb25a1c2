// What a model takes, in the words of the form.

/** Sizes worth offering: the native one first, then wide and tall ones as the model's bounds have room for. */
export function sizesOf({ width, height, size_multiple: step, max_side: most }) {
  const fit = (side) => Math.min(most, Math.round(side / step) * step);
  const sizes = [[width, height], [fit(width * 1.5), height], [width, fit(height * 1.5)], [fit(width * 1.5), fit(height * 1.5)]];
  const distinct = new Map(sizes.map(([w, h]) => [`${w}x${h}`, { width: w, height: h }]));
  return [...distinct].map(([value, size]) => ({ value, label: `${size.width} × ${size.height}, ${shape(size)}` }));
}

function shape({ width, height }) {
  return width > height ? "wide" : width < height ? "tall" : "square";
}

/** The bounds of num_inference_steps, and the most that the slider offers. */
export function stepsOf(model, sampler) {
  const limits = model.samplers.find(({ name }) => name === sampler) ?? model.samplers[0];
  const [least, most] = [limits.min_num_inference_steps, limits.max_num_inference_steps];
  return { least, most, offered: Math.min(most, Math.max(50, 2 * model.num_inference_steps)) };
}
