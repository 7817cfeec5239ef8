-- A task of 1 KiB for whichever machine is free first; there is none.
local head = '{"machinePattern":"^idle$","mode":"any","detail":{"argv":["true","'
local tail = '"]}}'
wrk.method = "POST"
wrk.body = head .. string.rep("x", 1024 - #head - #tail) .. tail
