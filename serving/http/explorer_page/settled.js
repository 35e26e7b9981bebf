/* Let one part of a view fail without the others. */

import { ApiError } from "./api.js";

/** A call's answer or its error, so that one failed part does not hide the others. A missing token still throws. */
export async function settled(call) {
  try {
    return { value: await call };
  } catch (error) {
    if (!(error instanceof ApiError) || error.wantsToken) throw error;
    return { error };
  }
}
