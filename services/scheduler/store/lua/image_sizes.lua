-- ARGV: job id
-- Returns [[index, bytes of the stored message], ...] of the images of a job, unordered.
local sizes = {}
for _, index in ipairs(redis.call('HKEYS', key('images', ARGV[1]))) do
  table.insert(sizes, {tonumber(index), redis.call('HSTRLEN', key('images', ARGV[1]), index)})
end
return sizes
