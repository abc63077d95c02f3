/** Every case of the Java client; arguments choose some by parts of their names. */
final class Main {
    public static void main(String[] only) {
        Records.add();
        Groups.add();
        Administration.add();
        Errors.add();
        boolean good = Harness.run(only);
        System.exit(good ? 0 : 1);
    }

    private Main() {}
}
