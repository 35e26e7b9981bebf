/* Times, ages and shares as text. Times are UTC, like the days of the features. */

/** 1998-03-01 */
export function day(time) {
  return new Date(time).toISOString().slice(0, 10);
}

/** 1998-03-01 14:05 */
export function moment(time) {
  return new Date(time).toISOString().slice(0, 16).replace("T", " ");
}

/** 7 h old, 12 days old */
export function age(hours) {
  return hours < 48 ? `${Math.round(hours)} h old` : `${Math.round(hours / 24)} days old`;
}

/** 0.05 as 5 % */
export function percent(share) {
  return `${Math.round(100 * share)} %`;
}
