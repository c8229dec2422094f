"""Notes in Redis, by name, each of which is gone unless it is posted again in time.

A board is one hash, so that reading it takes no search through all keys of Redis; times are of
Redis' clock, so that those of the nodes may differ.
"""

from monitoring.redis.client import client

_NOW = "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000)"
# What is posted is kept as `<gone after, in ms> <text>`. The field without a name has since when
# there is something on the board, in ms.
_POST = f"""
{_NOW}
redis.call('HSETNX', KEYS[1], '', string.format('%.0f', now))
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %s', now + ARGV[3], ARGV[2]))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
"""
_READ = f"""
{_NOW}
local found = {{}}
local notes = redis.call('HGETALL', KEYS[1])
for i = 1, #notes, 2 do
  local ends, text = string.match(notes[i + 1], '^(%d+) (.*)$')
  if ends and tonumber(ends) > now then
    table.insert(found, notes[i])
    table.insert(found, text)
  elseif ends then
    redis.call('HDEL', KEYS[1], notes[i])
  end
end
return found
"""
_AGE = f"""
{_NOW}
return now - (redis.call('HGET', KEYS[1], '') or now)
"""


def post(board: str, name: str, text: str, seconds: float) -> None:
    """Show the note for that long. Raises redis.RedisError."""
    script = client().register_script(_POST)
    script(keys=[board], args=[name, text, round(seconds * 1000)])


def read(board: str) -> dict[str, str]:
    """The notes that are shown now, by name. Raises redis.RedisError."""
    entries = client().register_script(_READ)(keys=[board])
    return dict(zip(entries[::2], entries[1::2], strict=True))


def age(board: str) -> float:
    """Seconds since the first of the notes that have followed one another without a gap.

    0 for an empty board; Redis may have lost what was there. Raises redis.RedisError.
    """
    return float(client().register_script(_AGE)(keys=[board])) / 1000


def take_down(board: str, name: str) -> None:
    """Remove a note before its time. Raises redis.RedisError."""
    client().hdel(board, name)
