-- ARGV: job id
-- Returns how many jobs of its model are ahead of it; 0 when it is not waiting.
local model = redis.call('HGET', key('job', ARGV[1]), 'model')
return model and redis.call('ZRANK', key('waiting', model), ARGV[1]) or 0
