"""The steps of a queue on Redis Streams that must happen wholly or not at all, as Lua scripts.

A task that waits or is held is an entry of its class's stream, with the field `t`. What is acknowledged is deleted, so the
length of a stream is what waits and what is held. `XPENDING key group id id 1 consumer` tells whether a consumer still holds an
entry: one whose lease was lost has been claimed by another.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ACK", "ENQUEUE", "EXTEND", "GIVE_BACK", "MOVE_DUE", "REPLAY", "RETURN", "TAKE_OVER"]

# KEYS streams by level. ARGV level, task, level, task, ...
ENQUEUE: Final = """
for i = 1, #ARGV, 2 do redis.call('XADD', KEYS[tonumber(ARGV[i]) + 1], '*', 't', ARGV[i + 1]) end
return #ARGV / 2
"""

# KEYS stream. ARGV group, consumer, id, id, ... Returns for each whether it was held.
ACK: Final = """
local answers = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 0 then answers[i - 2] = 0
  else
    redis.call('XACK', KEYS[1], ARGV[1], id)
    redis.call('XDEL', KEYS[1], id)
    answers[i - 2] = 1
  end
end
return answers
"""

# KEYS stream, delayed, dead. ARGV group, consumer, id, where, task, and for the delayed: level, milliseconds; for the dead:
# reason, instant.
GIVE_BACK: Final = """
local id = ARGV[3]
if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 0 then return 0 end
redis.call('XACK', KEYS[1], ARGV[1], id)
redis.call('XDEL', KEYS[1], id)
if ARGV[4] == 'ready' then redis.call('XADD', KEYS[1], '*', 't', ARGV[5])
elseif ARGV[4] == 'delayed' then
  local now = redis.call('TIME')
  local due = now[1] * 1000 + now[2] / 1000 + tonumber(ARGV[7])
  redis.call('ZADD', KEYS[2], due, id .. ':' .. ARGV[6] .. ':' .. ARGV[5])
elseif ARGV[4] == 'dead' then
  redis.call('XADD', KEYS[3], '*', 't', ARGV[5], 'reason', ARGV[6], 'died', ARGV[7])
end
return 1
"""

# KEYS stream. ARGV group, consumer, id, id, ... Has what is held of them wait as it is, behind the others and in their order.
RETURN: Final = """
for i = 3, #ARGV do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 1 then
    local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
    redis.call('XACK', KEYS[1], ARGV[1], id)
    redis.call('XDEL', KEYS[1], id)
    if entry then redis.call('XADD', KEYS[1], '*', unpack(entry[2])) end
  end
end
return 1
"""

# KEYS stream. ARGV group, consumer, milliseconds that have passed of the lease, id, id, ...
EXTEND: Final = """
local answers = {}
for i = 4, #ARGV do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 0 then answers[i - 3] = 0
  else
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'IDLE', ARGV[3], 'JUSTID')
    answers[i - 3] = 1
  end
end
return answers
"""

# KEYS stream. ARGV group, consumer, milliseconds of silence, most. Returns for each its id, fields and earlier deliveries.
# XAUTOCLAIM would look at ten times `most` entries from the oldest on: behind as many live ones it finds nothing.
TAKE_OVER: Final = """
local rows = {}
for _, idle in ipairs(
  redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', ARGV[4])
) do
  local entry = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, idle[1])[1]
  if entry then rows[#rows + 1] = {idle[1], entry[2], idle[4]}
  else redis.call('XACK', KEYS[1], ARGV[1], idle[1]) end
end
return rows
"""

# KEYS delayed, streams by level. ARGV most. Returns milliseconds until the next is due, -1 if there is none.
MOVE_DUE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local _, _, level, task = string.find(member, '^[^:]*:(%d+):(.*)$')
  redis.call('XADD', KEYS[tonumber(level) + 2], '*', 't', task)
  redis.call('ZREM', KEYS[1], member)
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if #first == 0 then return -1 end
return math.max(0, math.ceil(tonumber(first[2]) - now))
"""

# KEYS dead, stream. ARGV id, task. Returns whether it was still there.
REPLAY: Final = """
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', 't', ARGV[2])
return 1
"""
