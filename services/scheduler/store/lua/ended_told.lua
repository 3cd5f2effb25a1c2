-- Forget these ends of jobs: they are logged.
-- ARGV: entry id...
redis.call('XACK', key('ended'), GROUP, unpack(ARGV))
redis.call('XDEL', key('ended'), unpack(ARGV))
return redis.status_reply('OK')
