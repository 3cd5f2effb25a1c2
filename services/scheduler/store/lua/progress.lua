-- ARGV: job id
-- Returns [state, number of images, images stored, [latest progress of each other image, ...]]; nil without such a job.
local state, num_images = unpack(redis.call('HMGET', key('job', ARGV[1]), 'state', 'num_images'))
if not state then
  return nil
end
local latest = {}
for _, value in ipairs(redis.call('HVALS', key('progress', ARGV[1]))) do
  table.insert(latest, (string.match(value, '^%d+:(.*)$')))
end
return {state, num_images, redis.call('HLEN', key('images', ARGV[1])), latest}
