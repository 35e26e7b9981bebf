-- Requests for wrk 4, one connection per thread: an open loop at a fixed rate, or a closed loop (rate 0).
--
--     wrk -t N -c N -d SECONDS -s load.lua URL -- RATE N START_US SECONDS PATH BODIES FOLDER
--
-- Slot s of the open loop is due at START_US + s / RATE, whatever happened to earlier ones; thread t owns the slots
-- t, t + N, t + 2N, ... Every answer is one line of FOLDER/thread-<t>.tsv; benchmarks/serving/load.py says what it holds.
-- The clock is CLOCK_MONOTONIC in microseconds, which Python's time.monotonic() reads as well.

local ffi = require("ffi")
ffi.cdef([[
  struct load_timespec { long seconds; long nanoseconds; };
  int clock_gettime(int clock, struct load_timespec *now);
]])
local CLOCK_MONOTONIC = 1
local NEVER_MS = 3600 * 1000
local STRIDE = 7919 -- a prime: neighbouring slots ask for users far apart
local moment = ffi.new("struct load_timespec")

local function now_us()
  ffi.C.clock_gettime(CLOCK_MONOTONIC, moment)
  return tonumber(moment.seconds) * 1000000 + math.floor(tonumber(moment.nanoseconds) / 1000)
end

local num_threads = 0

function setup(thread)
  thread:set("number", num_threads)
  num_threads = num_threads + 1
end

local rate, width, start_us, seconds, path, log
local bodies = {}
local slot, due_us, sent_us

function init(args)
  rate, width, start_us, seconds = tonumber(args[1]), tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  path = args[5]
  for line in io.lines(args[6]) do
    bodies[#bodies + 1] = line
  end
  log = assert(io.open(args[7] .. "/thread-" .. number .. ".tsv", "w"))
  log:setvbuf("full", 65536)
  slot = number - width
  if rate == 0 then
    delay = nil
  end
end

-- Called when the connection is free: how long until its next slot.
function delay()
  slot = slot + width
  due_us = start_us + slot * 1000000 / rate
  if due_us >= start_us + seconds * 1000000 then
    return NEVER_MS
  end
  return math.max(0, math.floor((due_us - now_us()) / 1000))
end

function request()
  if rate == 0 then
    slot = slot + width
    due_us = now_us()
  end
  sent_us = now_us()
  local body = bodies[(slot * STRIDE) % #bodies + 1]
  return wrk.format("POST", path, { ["Content-Type"] = "application/json" }, body)
end

local function text(body, name)
  return string.match(body, '"' .. name .. '":%s*"([^"]*)"') or ""
end

-- The marks that begin the titles of an answer ("r1|The title"), each once; "?" for a title without one.
local function marks(body)
  local found, seen = {}, {}
  for title in string.gmatch(body, '"title":%s*"([^"]*)') do
    local mark = string.match(title, "^(r%d+)|") or "?"
    if not seen[mark] then
      seen[mark] = true
      found[#found + 1] = mark
    end
  end
  return table.concat(found, ",")
end

function response(status, _, body)
  local done_us = now_us()
  -- Timers count whole milliseconds and may fire one early; then the wait began when the request was sent.
  log:write(string.format(
    "%d\t%.0f\t%.0f\t%.0f\t%d\t%s\t%s\t%s\t%s\n",
    slot, math.min(due_us, sent_us), sent_us, done_us, status,
    text(body, "release"), text(body, "fallback"), text(body, "store_problem"), marks(body)
  ))
end

function done(summary)
  local errors = summary.errors
  print(string.format("SOCKET ERRORS %d", errors.connect + errors.read + errors.write + errors.timeout))
end
