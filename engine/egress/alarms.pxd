cdef double _NEVER


cdef class Alarms:
    cdef public set _alarms
    cdef public double _looked
    cdef public object _sleep
    cdef public double next_look

    cpdef enter(self, Alarm alarm)
    cpdef leave(self, Alarm alarm)
    cpdef sooner(self, double at)
    cpdef look(self, double now)


cdef class Alarm:
    cdef public Alarms _alarms
    cdef public double at
    cdef public object ring

    cpdef open(self)
    cpdef move(self, double at)
    cpdef off(self)
    cpdef close(self)
