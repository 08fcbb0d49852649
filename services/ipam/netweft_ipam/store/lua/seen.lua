-- Tells whether a request id came before with another body. ARGV[5] request id, [6] fingerprint. Returns code.
local known = call('GET', request_key(call('HGET', M, 'g'), ARGV[5]))
return { known and sub(known, 1, #ARGV[6]) ~= ARGV[6] and 'REUSED' or 'OK' }
