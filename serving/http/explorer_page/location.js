/* The hash of the address holds the state of the view, so links and the Back button work.

  #                                                   start view
  #user=196&release=R&with=R2&k=10&categories=Drama&recent=50%0A172&seen=1
  #item=50
  #q=space+adventure
*/

const NAMES = ["user", "item", "q", "release", "with", "k", "categories", "recent", "seen"];

/** The state in the current address. Unknown names are ignored. */
export function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(NAMES.filter((name) => given.get(name)).map((name) => [name, given.get(name)]));
}

/** The address of a state. */
export function address(state) {
  const params = new URLSearchParams();
  for (const name of NAMES) if (state[name]) params.set(name, state[name]);
  return `#${params}`;
}

export function go(state) {
  location.hash = address(state);
}
