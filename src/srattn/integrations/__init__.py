"""Our models inside other libraries; each module needs its library, and importing it is what registers them there."""
