"""Files on their way to this node, from whoever has them.

source      where a file can be had: what the hub and other nodes have in common
files       several at once
fetch       one, from the first source that has it right, going on where it was cut
inflow      its bytes are read in a thread of their own, which can be left behind
part        what has come of it, hashed as it comes
throttle    how fast all of them may be together
progress    how far they are
stopping    calls that end when told to, whatever the network does
"""
