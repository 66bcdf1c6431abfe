/** Numbers and names as people read them. */

/**
 * @param {number} seconds
 * @param {number} [digits] after the point, below ten seconds
 */
export function duration(seconds, digits = 1) {
  if (seconds < 10) return `${seconds.toFixed(digits)} s`;
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** @param {number} amount */
export function creditsInWords(amount) {
  return `${amountInWords(amount)} ${amount === 1 ? "credit" : "credits"}`;
}

/** @param {number} amount */
export function amountInWords(amount) {
  return amount.toLocaleString("en", { maximumFractionDigits: 3 });
}

/** @param {number} count */
export function picturesInWords(count) {
  return count === 1 ? "1 picture" : `${count} pictures`;
}

/**
 * A file name that tells a picture from others: the beginning of its prompt, and its seed.
 *
 * @param {string} prompt
 * @param {number | bigint} seed
 * @param {string} mediaType
 */
export function fileName(prompt, seed, mediaType) {
  const words = prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  const beginning = words.join("-").slice(0, 40).replace(/-$/, "") || "picture";
  return `${beginning}-${seed}.${suffix(mediaType)}`;
}

/** @param {string} mediaType for example image/jpeg, or only jpeg */
export function suffix(mediaType) {
  return mediaType.replace("image/", "").replace("jpeg", "jpg");
}
