-- RUNNING to DECODING: every image of the job has its last step behind it.
-- ARGV: pool, token, job id
-- Returns 1, or 0 when the job has ended or is another pool's.
if not state_if_ours(ARGV[3]) then
  return 0
end
change_state(ARGV[3], 'DECODING')
return 1
