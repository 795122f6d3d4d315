//! Rewrites a template so that whatever multiplies data passes a meter.
//!
//! Jinja's engine counts steps, but one step may double a string, compare two lists whose elements are each other's, or walk a lazy
//! sequence of 10^18 elements: steps bound neither memory nor time. So the parsed template is rebuilt with calls into
//! [`meter`](super::meter) around each such operation. The calls have names that no template can write.
//!
//! | in the template | becomes | why |
//! |---|---|---|
//! | `a ~ b`, `a + b`, `a * b` | a call that does it | text and lists grow, or would be lazy |
//! | text between tags | an expression | so that it is counted where it is written |
//! | operands of comparisons, arguments, filtered values, keys | looked through first | they are walked as trees, which sharing makes exponential |
//! | `a[b:c:d]` | a call that does it | the engine's own would be lazy, and counts backwards otherwise than Python |
//! | results of filters, methods, functions | made whole | lazy sequences on lazy sequences take unbounded time |
//! | elements of lists and maps, attributes of namespaces | must be plain data | a namespace inside itself is never freed |
//!
//! What chat templates have no use for is refused: inheritance, imports, `call`, `do`, `autoescape`, recursive loops, macros inside loops
//! and macros, and, where one is reached, filters outside the list.

use minijinja::machinery::ast::*;
use minijinja::machinery::{CodeGenerator, Instructions, Span, parse};
use std::collections::BTreeMap;

use super::{WHITESPACE, describe, meter, shape};
use crate::Error;

/// A template as the engine runs it.
pub(super) struct Compiled<'a> {
    pub instructions: Instructions<'a>,
    pub blocks: BTreeMap<&'a str, Instructions<'a>>,
}

/// Parses, guards and compiles a template.
///
/// # Errors
/// What is no template, or uses what is refused; with the line.
pub(super) fn compile(source: &str) -> Result<Compiled<'_>, Error> {
    shape::check(source)?;
    let parsed = parse(source, "chat_template", Default::default(), WHITESPACE);
    let parsed = parsed.map_err(|e| Error::Template(describe(&e)))?;
    let Stmt::Template(template) = &parsed else { return Err(Error::Template("is no template".into())) };
    let children = statements(&template.children, Place::Top)?;
    let mut generator = CodeGenerator::new("chat_template", source);
    generator.compile_stmt(&Stmt::Template(Spanned::new(Template { children }, template.span())));
    let (instructions, blocks) = generator.finish();
    Ok(Compiled { instructions, blocks })
}

/// Filters that templates may use; [`meter`] defines those whose result is not bounded by what they are given.
const FILTERS: [&str; 38] = [
    "abs",
    "bool",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "sort",
    "string",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "wordcount",
];

/// Where a statement stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Run once.
    Top,
    /// In a loop or a macro, run any number of times.
    Inner,
}

type Result<T, E = Error> = std::result::Result<T, E>;

fn refuse<T>(span: Span, what: &str) -> Result<T> {
    Err(Error::Template(format!("line {}: {what}", span.start_line)))
}

fn statements<'a>(body: &[Stmt<'a>], place: Place) -> Result<Vec<Stmt<'a>>> {
    body.iter().map(|s| statement(s, place)).collect()
}

fn statement<'a>(s: &Stmt<'a>, place: Place) -> Result<Stmt<'a>> {
    Ok(match s {
        Stmt::EmitExpr(s) => Stmt::EmitExpr(Spanned::new(EmitExpr { expr: expression(&s.expr)? }, s.span())),
        Stmt::EmitRaw(s) => {
            let text = Expr::Const(Spanned::new(Const { value: s.raw.into() }, s.span()));
            Stmt::EmitExpr(Spanned::new(EmitExpr { expr: text }, s.span()))
        }
        Stmt::ForLoop(s) if s.recursive => return refuse(s.span(), "recursive loops are not run"),
        Stmt::ForLoop(s) => {
            let node = ForLoop {
                target: target(&s.target, true)?,
                iter: call(meter::EACH, s.iter.span(), vec![expression(&s.iter)?]),
                filter_expr: optional(&s.filter_expr)?,
                recursive: false,
                body: statements(&s.body, Place::Inner)?,
                else_body: statements(&s.else_body, place)?,
            };
            Stmt::ForLoop(Spanned::new(node, s.span()))
        }
        Stmt::IfCond(s) => {
            let node = IfCond {
                expr: expression(&s.expr)?,
                true_body: statements(&s.true_body, place)?,
                false_body: statements(&s.false_body, place)?,
            };
            Stmt::IfCond(Spanned::new(node, s.span()))
        }
        Stmt::WithBlock(s) => {
            let assign = |(to, from): &(Expr<'a>, Expr<'a>)| Ok((target(to, true)?, expression(from)?));
            let assignments = s.assignments.iter().map(assign).collect::<Result<_>>()?;
            Stmt::WithBlock(Spanned::new(WithBlock { assignments, body: statements(&s.body, place)? }, s.span()))
        }
        Stmt::Set(s) => {
            let mut expr = expression(&s.expr)?;
            if !matches!(s.target, Expr::Var(_)) {
                expr = call(meter::PLAIN, s.expr.span(), vec![expr]);
            }
            Stmt::Set(Spanned::new(Set { target: target(&s.target, false)?, expr }, s.span()))
        }
        Stmt::SetBlock(s) => {
            let node = SetBlock {
                target: target(&s.target, false)?,
                filter: optional(&s.filter)?,
                body: statements(&s.body, place)?,
            };
            Stmt::SetBlock(Spanned::new(node, s.span()))
        }
        Stmt::FilterBlock(s) => {
            let node = FilterBlock { filter: expression(&s.filter)?, body: statements(&s.body, place)? };
            Stmt::FilterBlock(Spanned::new(node, s.span()))
        }
        Stmt::Macro(s) if place == Place::Inner => {
            return refuse(s.span(), "macros inside loops or macros are not run");
        }
        Stmt::Macro(s) => {
            let node = Macro {
                name: s.name,
                args: s.args.iter().map(|a| target(a, true)).collect::<Result<_>>()?,
                defaults: s.defaults.iter().map(expression).collect::<Result<_>>()?,
                body: statements(&s.body, Place::Inner)?,
            };
            Stmt::Macro(Spanned::new(node, s.span()))
        }
        Stmt::Continue(s) => Stmt::Continue(Spanned::new(Continue, s.span())),
        Stmt::Break(s) => Stmt::Break(Spanned::new(Break, s.span())),
        Stmt::Template(s) => return refuse(s.span(), "a template inside a template"),
        Stmt::AutoEscape(s) => return refuse(s.span(), "`autoescape` is not run"),
        Stmt::CallBlock(s) => return refuse(s.span(), "`call` is not run"),
        Stmt::Do(s) => return refuse(s.span(), "`do` is not run"),
        Stmt::Block(s) => return refuse(s.span(), "`block` is not run"),
        Stmt::Import(s) => return refuse(s.span(), "`import` is not run"),
        Stmt::FromImport(s) => return refuse(s.span(), "`import` is not run"),
        Stmt::Extends(s) => return refuse(s.span(), "`extends` is not run"),
        Stmt::Include(s) => return refuse(s.span(), "`include` is not run"),
    })
}

/// What is assigned to: names, lists of them, and, unless `names_only`, an attribute of a namespace.
fn target<'a>(e: &Expr<'a>, names_only: bool) -> Result<Expr<'a>> {
    Ok(match e {
        Expr::Var(v) => Expr::Var(Spanned::new(Var { id: v.id }, v.span())),
        Expr::List(l) => {
            let items = l.items.iter().map(|i| target(i, names_only)).collect::<Result<_>>()?;
            Expr::List(Spanned::new(List { items }, l.span()))
        }
        Expr::GetAttr(a) if !names_only => {
            Expr::GetAttr(Spanned::new(GetAttr { expr: target(&a.expr, true)?, name: a.name }, a.span()))
        }
        other => return refuse(other.span(), "this cannot be assigned to"),
    })
}

fn optional<'a>(e: &Option<Expr<'a>>) -> Result<Option<Expr<'a>>> {
    e.as_ref().map(expression).transpose()
}

/// A call of one of the meter's functions.
fn call<'a>(name: &'static str, span: Span, args: Vec<Expr<'a>>) -> Expr<'a> {
    let expr = Expr::Var(Spanned::new(Var { id: name }, span));
    Expr::Call(Spanned::new(Call { expr, args: args.into_iter().map(CallArg::Pos).collect() }, span))
}

/// An expression whose value is looked through before it is used.
fn seen<'a>(e: &Expr<'a>) -> Result<Expr<'a>> {
    let inner = expression(e)?;
    Ok(match inner {
        Expr::Const(_) => inner,
        inner => call(meter::SEEN, e.span(), vec![inner]),
    })
}

/// An expression whose value becomes part of another: plain data.
fn plain<'a>(e: &Expr<'a>) -> Result<Expr<'a>> {
    let inner = expression(e)?;
    Ok(match inner {
        Expr::Const(_) => inner,
        inner => call(meter::PLAIN, e.span(), vec![inner]),
    })
}

fn arguments<'a>(
    args: &[CallArg<'a>],
    span: Span,
    each: fn(&Expr<'a>) -> Result<Expr<'a>>,
) -> Result<Vec<CallArg<'a>>> {
    let argument = |arg: &CallArg<'a>| match arg {
        CallArg::Pos(e) => Ok(CallArg::Pos(each(e)?)),
        CallArg::Kwarg(name, e) => Ok(CallArg::Kwarg(name, each(e)?)),
        CallArg::PosSplat(_) | CallArg::KwargSplat(_) => refuse(span, "`*` and `**` in arguments are not run"),
    };
    args.iter().map(argument).collect()
}

fn filter<'a>(f: &Spanned<Filter<'a>>) -> Result<Expr<'a>> {
    if !FILTERS.contains(&f.name) {
        // Where it stands may never be reached.
        let message = Const { value: format!("unknown filter `{}`", f.name).into() };
        return Ok(call(meter::REFUSE, f.span(), vec![Expr::Const(Spanned::new(message, f.span()))]));
    }
    if f.name == "map" {
        // Its first argument may name a filter, which must be one of the list as well.
        if let Some(CallArg::Pos(name)) = f.args.first() {
            let known = name.as_const().is_some_and(|n| n.as_str().is_some_and(|n| FILTERS.contains(&n)));
            if !known {
                return refuse(f.span(), "the filter that `map` applies is unknown");
            }
        }
    }
    let node = Filter {
        name: f.name,
        expr: f.expr.as_ref().map(seen).transpose()?,
        args: arguments(&f.args, f.span(), seen)?,
    };
    Ok(call(meter::WHOLE, f.span(), vec![Expr::Filter(Spanned::new(node, f.span()))]))
}

fn expression<'a>(e: &Expr<'a>) -> Result<Expr<'a>> {
    Ok(match e {
        Expr::Var(v) => Expr::Var(Spanned::new(Var { id: v.id }, v.span())),
        Expr::Const(c) => Expr::Const(Spanned::new(Const { value: c.value.clone() }, c.span())),
        Expr::Slice(s) => {
            let none = || Expr::Const(Spanned::new(Const { value: ().into() }, s.span()));
            let bound = |e| Ok::<_, Error>(optional(e)?.unwrap_or_else(none));
            let bounds = [bound(&s.start)?, bound(&s.stop)?, bound(&s.step)?];
            call(meter::SLICE, s.span(), [expression(&s.expr)?].into_iter().chain(bounds).collect())
        }
        Expr::UnaryOp(u) => {
            let op = if matches!(u.op, UnaryOpKind::Not) { UnaryOpKind::Not } else { UnaryOpKind::Neg };
            Expr::UnaryOp(Spanned::new(UnaryOp { op, expr: expression(&u.expr)? }, u.span()))
        }
        Expr::BinOp(b) => {
            let both = || Ok::<_, Error>(vec![expression(&b.left)?, expression(&b.right)?]);
            match b.op {
                BinOpKind::Concat => call(meter::CONCAT, b.span(), both()?),
                BinOpKind::Add => call(meter::ADD, b.span(), both()?),
                BinOpKind::Mul => call(meter::MULTIPLY, b.span(), both()?),
                BinOpKind::ScAnd
                | BinOpKind::ScOr
                | BinOpKind::Sub
                | BinOpKind::Div
                | BinOpKind::FloorDiv
                | BinOpKind::Rem
                | BinOpKind::Pow => {
                    let node = BinOp { op: b.op, left: expression(&b.left)?, right: expression(&b.right)? };
                    Expr::BinOp(Spanned::new(node, b.span()))
                }
                BinOpKind::Eq
                | BinOpKind::Ne
                | BinOpKind::Lt
                | BinOpKind::Lte
                | BinOpKind::Gt
                | BinOpKind::Gte
                | BinOpKind::In => Expr::BinOp(Spanned::new(
                    BinOp { op: b.op, left: seen(&b.left)?, right: seen(&b.right)? },
                    b.span(),
                )),
            }
        }
        Expr::Compare(c) => {
            let compared = |o: &CompareOp<'a>| Ok(CompareOp { op: o.op, expr: seen(&o.expr)? });
            let ops = c.ops.iter().map(compared).collect::<Result<_>>()?;
            Expr::Compare(Spanned::new(Compare { expr: seen(&c.expr)?, ops }, c.span()))
        }
        Expr::IfExpr(i) => {
            let node = IfExpr {
                test_expr: expression(&i.test_expr)?,
                true_expr: expression(&i.true_expr)?,
                false_expr: optional(&i.false_expr)?,
            };
            Expr::IfExpr(Spanned::new(node, i.span()))
        }
        Expr::Filter(f) => filter(f)?,
        Expr::Test(t) => {
            let node = Test { name: t.name, expr: seen(&t.expr)?, args: arguments(&t.args, t.span(), seen)? };
            Expr::Test(Spanned::new(node, t.span()))
        }
        Expr::GetAttr(a) => Expr::GetAttr(Spanned::new(GetAttr { expr: expression(&a.expr)?, name: a.name }, a.span())),
        Expr::GetItem(g) => {
            let node = GetItem {
                expr: call(meter::TEXT, g.span(), vec![expression(&g.expr)?]),
                subscript_expr: seen(&g.subscript_expr)?,
            };
            Expr::GetItem(Spanned::new(node, g.span()))
        }
        Expr::Call(c) => {
            let stored = matches!(&c.expr, Expr::Var(v) if matches!(v.id, "namespace" | "dict"));
            let expr = match &c.expr {
                Expr::GetAttr(a) => {
                    Expr::GetAttr(Spanned::new(GetAttr { expr: seen(&a.expr)?, name: a.name }, a.span()))
                }
                other => expression(other)?,
            };
            let node = Call { expr, args: arguments(&c.args, c.span(), if stored { plain } else { seen })? };
            call(meter::WHOLE, c.span(), vec![Expr::Call(Spanned::new(node, c.span()))])
        }
        Expr::List(l) => {
            Expr::List(Spanned::new(List { items: l.items.iter().map(plain).collect::<Result<_>>()? }, l.span()))
        }
        Expr::Map(m) => {
            let keys = m.keys.iter().map(seen).collect::<Result<_>>()?;
            let values = m.values.iter().map(plain).collect::<Result<_>>()?;
            Expr::Map(Spanned::new(Map { keys, values }, m.span()))
        }
    })
}
