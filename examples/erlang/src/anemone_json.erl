%% JSON as the model's port speaks it: maps, lists, binaries, numbers, true, false, null.
%% (From OTP 27 on the module `json` does the same.)
-module(anemone_json).
-export([encode/1, decode/1]).

encode(Map) when is_map(Map) ->
    Fields = [[encode(Key), $:, encode(Value)] || {Key, Value} <- maps:to_list(Map)],
    [${, lists:join($,, Fields), $}];
encode(List) when is_list(List) -> [$[, lists:join($,, [encode(Item) || Item <- List]), $]];
encode(Text) when is_binary(Text) -> [$", [escape(Char) || <<Char/utf8>> <= Text], $"];
encode(Number) when is_integer(Number) -> integer_to_list(Number);
encode(Number) when is_float(Number) -> io_lib:format("~w", [Number]);
encode(Atom) when is_atom(Atom) -> atom_to_list(Atom).

escape($") -> "\\\"";
escape($\\) -> "\\\\";
escape(Char) when Char < 32 -> io_lib:format("\\u~4.16.0b", [Char]);
escape(Char) -> <<Char/utf8>>.

%% Fails with an error on anything that is not one JSON value.
decode(Text) ->
    {Value, Rest} = value(skip(Text)),
    <<>> = skip(Rest),
    Value.

skip(<<Space, Rest/binary>>) when Space =:= $\s; Space =:= $\t; Space =:= $\n; Space =:= $\r -> skip(Rest);
skip(Rest) -> Rest.

value(<<"{", Rest/binary>>) -> object(skip(Rest), #{});
value(<<"[", Rest/binary>>) -> list(skip(Rest), []);
value(<<"\"", Rest/binary>>) -> string(Rest, []);
value(<<"true", Rest/binary>>) -> {true, Rest};
value(<<"false", Rest/binary>>) -> {false, Rest};
value(<<"null", Rest/binary>>) -> {null, Rest};
value(Text) ->
    {match, [{0, Length}]} = re:run(Text, "^-?[0-9]+(\\.[0-9]+)?([eE][-+]?[0-9]+)?", [{capture, first}]),
    <<Number:Length/binary, Rest/binary>> = Text,
    {number(Number), Rest}.

number(Text) ->
    try binary_to_integer(Text)
    catch error:badarg ->
        case binary:match(Text, <<".">>) of
            nomatch -> binary_to_float(re:replace(Text, "[eE]", ".0e", [{return, binary}]));
            _ -> binary_to_float(Text)
        end
    end.

object(<<"}", Rest/binary>>, Map) -> {Map, Rest};
object(<<",", Rest/binary>>, Map) -> object(skip(Rest), Map);
object(<<"\"", Rest/binary>>, Map) ->
    {Key, AfterKey} = string(Rest, []),
    <<":", Colon/binary>> = skip(AfterKey),
    {Value, AfterValue} = value(skip(Colon)),
    object(skip(AfterValue), Map#{Key => Value}).

list(<<"]", Rest/binary>>, Items) -> {lists:reverse(Items), Rest};
list(<<",", Rest/binary>>, Items) -> list(skip(Rest), Items);
list(Text, Items) ->
    {Item, Rest} = value(Text),
    list(skip(Rest), [Item | Items]).

string(<<"\"", Rest/binary>>, Parts) -> {iolist_to_binary(lists:reverse(Parts)), Rest};
string(<<"\\u", High:4/binary, "\\u", Low:4/binary, Rest/binary>>, Parts) when High >= <<"d800">>, High < <<"dc00">> ->
    Code = 16#10000 + ((hex(High) - 16#D800) bsl 10) + (hex(Low) - 16#DC00),
    string(Rest, [<<Code/utf8>> | Parts]);
string(<<"\\u", Hex:4/binary, Rest/binary>>, Parts) -> string(Rest, [<<(hex(Hex))/utf8>> | Parts]);
string(<<"\\", Char, Rest/binary>>, Parts) ->
    Escaped = #{$b => $\b, $f => $\f, $n => $\n, $r => $\r, $t => $\t},
    string(Rest, [maps:get(Char, Escaped, Char) | Parts]);
string(<<Char, Rest/binary>>, Parts) -> string(Rest, [Char | Parts]).

hex(Digits) -> binary_to_integer(Digits, 16).
