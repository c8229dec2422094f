"""Heartbeats: texts that processes repeat at short intervals, and that expire in Redis.

Each group of heartbeats is one hash, so that reading it takes no search through all keys of Redis.
Times are of Redis' clock, so that those of the nodes may differ. All functions raise
redis.RedisError.
"""

from monitoring.redis.client import client

_NOW = "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000)"
# A field has `<expires at, in ms> <text>`. The field without a name has since when there have been
# heartbeats in the group without a gap, in ms.
_BEAT = f"""
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
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local ends, text = string.match(fields[i + 1], '^(%d+) (.*)$')
  if ends and tonumber(ends) > now then
    table.insert(found, fields[i])
    table.insert(found, text)
  elseif ends then
    redis.call('HDEL', KEYS[1], fields[i])
  end
end
return found
"""
_AGE = f"""
{_NOW}
return now - (redis.call('HGET', KEYS[1], '') or now)
"""


def beat(group: str, name: str, text: str, seconds: float) -> None:
    """Set the text under a name; it expires after so many seconds."""
    script = client().register_script(_BEAT)
    script(keys=[group], args=[name, text, round(seconds * 1000)])


def read(group: str) -> dict[str, str]:
    """The texts that have not expired, by name."""
    fields = client().register_script(_READ)(keys=[group])
    return dict(zip(fields[::2], fields[1::2], strict=True))


def age(group: str) -> float:
    """Seconds since the first of the heartbeats that have followed one another without a gap.

    0 for an empty group; Redis may have lost what was there.
    """
    return float(client().register_script(_AGE)(keys=[group])) / 1000


def stop(group: str, name: str) -> None:
    """Remove a text before it expires."""
    client().hdel(group, name)
