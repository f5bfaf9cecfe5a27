package aml

// Arg is the method's argument i, 0 to 6.
func Arg(i int) Term {
	if i < 0 || i >= maxMethodArgs {
		panic("aml: no such argument")
	}
	return Term{byte(opArg0 + i)}
}

// Local is the method's local variable i, 0 to 7.
func Local(i int) Term {
	if i < 0 || i >= maxMethodLocal {
		panic("aml: no such local variable")
	}
	return Term{byte(opLocal0 + i)}
}

// If runs body when cond is not zero.
func If(cond Term, body ...Term) Term {
	return join(Term{opIf}, pkg(join(cond, join(body...))))
}

// Else follows an If.
func Else(body ...Term) Term { return join(Term{opElse}, pkg(join(body...))) }

// Return ends the method with a value.
func Return(v Term) Term { return join(Term{opReturn}, v) }

// Store copies v into target.
func Store(v, target Term) Term { return join(Term{opStore}, v, target) }

// And is a & b, without a target.
func And(a, b Term) Term { return join(Term{opAnd}, a, b, Term{0}) }

// AndTo stores a & b in target.
func AndTo(a, b, target Term) Term { return join(Term{opAnd}, a, b, target) }

// OrTo stores a | b in target.
func OrTo(a, b, target Term) Term { return join(Term{opOr}, a, b, target) }

// Equal is true when a and b are the same.
func Equal(a, b Term) Term { return join(Term{opLEqual}, a, b) }

// NotEqual is true when a and b differ.
func NotEqual(a, b Term) Term { return join(Term{opLNot, opLEqual}, a, b) }

// Notify tells the driver of an object of an event (§5.6.6).
func Notify(object string, value uint64) Term {
	return join(Term{opNotify}, Path(object), Integer(value))
}

// CreateDWordField declares name as the 32 bits at byte index of a buffer.
func CreateDWordField(buffer Term, index uint64, name string) Term {
	return join(Term{opCreateDWord}, buffer, Integer(index), Path(name))
}
